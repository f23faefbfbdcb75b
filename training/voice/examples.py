"""What the Talker is trained on: the runtime's prompt (user rows, nine assistant rows), then a reply token and a frame a row."""

from collections.abc import Iterator
from random import Random

import numpy as np
import torch

from training import domain, layout, wording
from training.voice import phrases
from training.voice.answers import Voice
from training.voice.codec import BOOKS

ROWS = 192  # of an example
SPOILT, SHIFTED, WRONG = 0.3, 0.04, 0.03  # of the frames that the Talker hears of itself: upper codes; a neighbour's; any frame's
MISHEARD = 0.03  # of the codes that the CodePredictor is told


def user_rows(rnd: Random, build: layout.Builder, questions: list[str], room: int) -> tuple[list, np.ndarray, list]:
    """The user's turns, at most `room` rows: ids, positions [3, n], which rows are media. What they say must not matter to the
    voice, so half of them is noise: any ids, pictures of any size, sound of any length."""
    ids, positions, media, at = [], [], [], 0
    for _ in range(rnd.choice((1, 1, 1, 2, 2, 3, 4))):
        parts = [(build.user, "text")]
        if rnd.random() < 0.5:
            parts += [
                (build.image[:1], "text"),
                (rnd.choice(((4, 5), (4, 5), (3, 4), (4, 6), (5, 4))), "picture"),
                (build.image[2:], "text"),
            ]
        if rnd.random() < 0.5:
            sound = [build.audio[1]] * layout.audio_rows(rnd.randrange(60, 480))
            parts += [(build.audio[:1], "text"), (sound, "sound"), (build.audio[2:], "text")]
        elif rnd.random() < 0.5:
            parts += [(build.encode(wording.typed(rnd, rnd.choice(questions))), "text")]
        else:
            parts += [([rnd.randrange(build.tokenizer.get_vocab_size()) for _ in range(rnd.randrange(1, 20))], "text")]
        parts += [(build.end, "text")]
        n = sum(what[0] * what[1] if kind == "picture" else len(what) for what, kind in parts)
        if len(ids) + n > room:
            break
        for what, kind in parts:
            if kind == "picture":
                h, w = what
                positions.append(np.stack([np.zeros(h * w), np.repeat(np.arange(h), w), np.tile(np.arange(w), h)]) + at)
                ids += [build.image[1]] * (h * w)
                at += max(h, w)
            else:
                positions.append(np.tile(np.arange(len(what)) + at, (3, 1)))
                ids += what
                at += len(what)
            media += [kind != "text"] * (len(ids) - len(media))
    return ids, np.concatenate([np.zeros((3, 0)), *positions], 1), media


class Examples(torch.utils.data.IterableDataset):
    """Batches of fixed shapes, for ever. B examples, S = ROWS:

    text [B, S]: Thinker token ids, -1 none; codec [B, S]: Talker ids, -1 none; frames [B, S, 16] where is_frame [B, S]: what
    was said; media [B, S]; positions [3, B, S]; label [B, S]: code 0 that follows, -100 none; of `picked` frames: rows (of
    B * S), codes [picked, 16] that are right, told [picked, 16] that the CodePredictor is given.
    start [B]: row that says frame 0; length [B]: frames; truth [B, S, 16]: their codes (for `clean` examples' evaluation).
    """

    def __init__(
        self, base, voice: Voice, codes: np.ndarray, answers: list[str], batch: int, picked: int, seed: int, clean: bool = False
    ):
        self.base, self.voice, self.codes, self.forms = base, voice, codes.astype(np.int64), phrases.by_form(answers)
        self.batch, self.picked, self.seed, self.clean = batch, picked, seed, clean

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        rnd = Random(self.seed * 1000 + (info.id if info else 0))
        rng = np.random.default_rng(rnd.randrange(1 << 30))
        build, questions = layout.Builder(self.base), domain.questions()
        t, c = build.config["talker_config"], build.config
        voices = list(t["speaker_id"].values())
        while True:
            b, s = self.batch, ROWS
            out = {
                "text": np.full((b, s), -1),
                "codec": np.full((b, s), -1),
                "media": np.zeros((b, s), bool),
                "frames": np.zeros((b, s, 16), np.int64),
                "is_frame": np.zeros((b, s), bool),
                "positions": np.zeros((3, b, s), np.float32),
                "label": np.full((b, s), -100),
                "start": np.zeros(b, np.int64),
                "length": np.zeros(b, np.int64),
                "truth": np.zeros((b, s, 16), np.int64),
            }
            picks = []
            for j, answer in enumerate(phrases.even(self.forms, rnd, b)):
                codes = self.codes[self.voice.frames_of(answer)]  # index -1, silence, is the last row
                m = len(codes)
                ids, positions, media = user_rows(rnd, build, questions, rnd.randrange(s - 9 - m))
                n, reply = len(ids), build.encode(answer)
                text, codec = out["text"][j], out["codec"][j]
                text[:n] = np.where(media, -1, ids)
                text[n : n + 9] = [*build.assistant, *[c["tts_pad_token_id"]] * 4, c["tts_bos_token_id"], reply[0]]
                control = [t["codec_nothink_id"], t["codec_think_bos_id"], t["codec_think_eos_id"]]
                codec[n + 3 : n + 9] = [*control, rnd.choice(voices), t["codec_pad_id"], t["codec_bos_id"]]
                text[n + 9 : n + 9 + m] = [*reply[1:], c["tts_eos_token_id"], *[c["tts_pad_token_id"]] * m][:m]
                out["media"][j, :n], out["start"][j], out["length"][j] = media, n + 8, m
                out["frames"][j, n + 9 : n + 9 + m] = codes if self.clean else self.spoil(codes, rng)
                out["is_frame"][j, n + 9 : n + 9 + m] = True
                out["label"][j, n + 8 : n + 9 + m] = [*codes[:, 0], t["codec_eos_token_id"]]
                out["truth"][j, n + 8 : n + 8 + m] = codes
                out["positions"][:, j] = np.concatenate(
                    [positions, np.tile(np.arange(s - n) + positions.max(initial=-1) + 1, (3, 1))], 1
                )
                picks.append(j * s + n + 8 + np.arange(m))
            rows = np.concatenate(picks)
            rows = rng.choice(rows, self.picked, replace=len(rows) < self.picked)
            right = out["truth"].reshape(-1, 16)[rows]
            wrong = rng.random(right.shape) < (0 if self.clean else MISHEARD)
            told = np.where(wrong, rng.integers(0, self.codes.max() + 1, right.shape), right)
            yield {k: torch.from_numpy(v) for k, v in (out | {"rows": rows, "codes": right, "told": told}).items()}

    def spoil(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the Talker hears of itself is never quite right: so it learns to find back."""
        said, m, books = codes.copy(), len(codes), int(self.codes.max()) + 1
        for k in np.flatnonzero(rng.random(m) < SPOILT):
            level = rng.integers(1, BOOKS)
            said[k, level:BOOKS] = rng.integers(0, books, BOOKS - level)
        for k in np.flatnonzero(rng.random(m) < SHIFTED):
            said[k] = codes[np.clip(k + rng.integers(-2, 3), 0, m - 1)]
        for k in np.flatnonzero(rng.random(m) < WRONG):
            said[k] = self.codes[rng.integers(len(self.codes))]
        return said
