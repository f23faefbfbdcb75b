"""Training items -> rows of the Thinker, in the layout of the runtime's prompts. numpy only; used by the loader's processes."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.tools import tools_text

CLIP_SAMPLES = 80000  # 5 s at 16 kHz, the longest clip of the training
CLIP_ROWS = 65  # of the audio encoder for them
GRID_ROWS = (4, 5)  # of the Thinker for a picture of 128 x 160


def audio_rows(frames: int) -> int:
    """Rows of the audio encoder for mel frames: 13 a second, each second on its own."""
    rest = frames % 100
    return frames // 100 * 13 + (((rest + 1) // 2 + 1) // 2 + 1) // 2 if rest else frames // 100 * 13


class Builder:
    """Lays items out with the tokenizer of BASE."""

    def __init__(self, base: str | Path):
        self.tokenizer = Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
        self.config = json.loads((Path(base) / "config.json").read_text())
        self.cache: dict[str, list[int]] = {}
        t = self.tokenizer.token_to_id
        self.user, self.assistant = self.encode("<|im_start|>user\n"), self.encode("<|im_start|>assistant\n")
        self.end = self.encode("<|im_end|>\n")
        self.image = (t("<|vision_start|>"), t("<|image_pad|>"), t("<|vision_end|>"))
        self.audio = (t("<|audio_start|>"), t("<|audio_pad|>"), t("<|audio_end|>"))

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 50_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text).ids
        return self.cache[text]

    def layout(self, item: dict, said: list[tuple], answer: bool = True, system: str = ""):
        """`said`: for each user turn ("text", words) or ("audio", mel frames); `system`: a system prompt.

        -> ids, positions [3, n], rows of each clip, rows of the picture, first row of the answer
        """
        ids, clips, picture = [], [], []
        if item["tools"]:
            ids += self.encode(tools_text(item["tools"], system))
        elif system:
            ids += self.encode(f"<|im_start|>system\n{system}<|im_end|>\n")
        for i, (kind, what) in enumerate(said):
            ids += self.user
            if i == len(said) - 1 and item["scene"] is not None:
                ids.append(self.image[0])
                picture = list(range(len(ids), len(ids) + GRID_ROWS[0] * GRID_ROWS[1]))
                ids += [self.image[1]] * len(picture) + [self.image[2]]
            if kind == "text":
                ids += self.encode(what)
            else:
                rows = audio_rows(what)
                ids.append(self.audio[0])
                clips.append(list(range(len(ids), len(ids) + rows)))
                ids += [self.audio[1]] * rows + [self.audio[2]]
            ids += self.end + self.assistant
            if i < len(said) - 1:
                ids += self.encode(item["history"][i][1]) + self.end
        start = len(ids)
        if answer:
            ids += self.encode(item["answer"]) + self.end[:1]
        positions = np.arange(len(ids), dtype=np.float32)[None].repeat(3, 0)
        if picture:
            p = picture[0]
            h, w = GRID_ROWS
            positions[0, p : p + h * w] = p
            positions[1, p : p + h * w] = p + np.repeat(np.arange(h), w)
            positions[2, p : p + h * w] = p + np.tile(np.arange(w), h)
            positions[:, p + h * w :] += max(h, w) - h * w
        return ids, positions, clips, picture, start
