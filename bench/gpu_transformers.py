"""transformers on the same GPU, as `from_pretrained` sets it up, with random bfloat16 weights made on the device."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.report import Part, Row

THINKER_TOKENS = 21  # 20 decode steps
FRAMES, TOKENS = 34, 11  # 2.7 s of speech and its text, 4 tokens a second
METHOD = f"""\
`Qwen3OmniMoeForConditionalGeneration` from the same config.json, bfloat16, its default attention and experts; greedy, batch 1,
KV cache, after one short reply as a warm-up. Thinker: {THINKER_TOKENS - 1} tokens after the first. Reply: {FRAMES} codec frames
(2.7 s of speech) with {TOKENS} tokens of text, from the call of `generate` to the waveform on the host. It does not stream: its
first PCM is the whole reply."""


def stages(config: dict, ids: np.ndarray, device: str) -> Iterator[tuple[str, Callable[[], Part]]]:
    """`config` is config.json's contents, `ids` int64 [S] the prompt."""
    yield "transformers", lambda: measure(Transformers(config, ids, device))


def measure(model: "Transformers") -> Part:
    model.generate(3, frames=3)
    model.generate(THINKER_TOKENS)
    tokens_per_s = 1 / model.seconds_per_call("thinker")
    started = time.perf_counter()
    samples = model.generate(TOKENS, frames=FRAMES)
    reply = time.perf_counter() - started
    frame, rtf = model.seconds_per_call("talker"), reply * 24000 / samples
    rows = [
        Row("Thinker", tokens_per_s, "tokens/s"),
        Row("codec frame (Talker + CodePredictor)", 1e3 * frame, "ms"),
        Row("whole reply, also its first PCM", reply, "s"),
        Row("real-time factor of a whole reply", rtf),
        Row("making the model", model.seconds, "s"),
    ]
    return Part(
        "transformers",
        METHOD,
        rows,
        {"tokens_per_s": tokens_per_s, "ms_per_frame": 1e3 * frame, "rtf": rtf, "first_pcm_s": reply, "samples": samples},
    )


class Transformers:
    """The model with random weights; a forward hook sees the end of each step."""

    def __init__(self, config: dict, ids: np.ndarray, device: str):
        import torch  # seconds to load, and not for the process that measures the engines
        from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        started = time.perf_counter()
        torch.manual_seed(0)
        with torch.device(device), torch.inference_mode():
            parts = Qwen3OmniMoeConfig.from_dict(config)
            self.model = Qwen3OmniMoeForConditionalGeneration._from_config(parts, dtype=torch.bfloat16).eval()
            for weight in self.model.parameters():  # transformers leaves the Talker's routers at zero: all would choose alike
                if weight.dim() > 1:
                    weight.normal_(0, 0.02)
        self.torch, self.ids = torch, torch.from_numpy(ids)[None].to(device)
        self.times: dict[str, list[float]] = {"thinker": [], "talker": []}
        for name in self.times:
            self.model.get_submodule(name).register_forward_hook(lambda *_, name=name: self.times[name].append(self._now()))
        self.seconds = self._now() - started

    def generate(self, tokens: int, frames: int = 0) -> int:
        """A reply of `tokens` tokens and, where `frames` are asked for, speech: how many samples."""
        for times in self.times.values():
            times.clear()
        options: dict[str, Any] = {
            "thinker_max_new_tokens": tokens,
            "thinker_min_new_tokens": tokens,
            "thinker_do_sample": False,
            "thinker_eos_token_id": self.model.config.im_end_token_id,
            "return_audio": bool(frames),
        }
        if frames:  # one more: the Talker's last token is never turned into a frame
            options |= {
                "talker_max_new_tokens": frames + 1,
                "talker_min_new_tokens": frames + 1,
                "talker_do_sample": False,
                "speaker": "ethan",
            }
        reply = self.model.generate(input_ids=self.ids, attention_mask=self.torch.ones_like(self.ids), **options)
        return reply[1].float().cpu().numel() if frames else 0

    def seconds_per_call(self, name: str) -> float:
        """Mean time of a step, the first (prefill) left out."""
        times = self.times[name]
        return (times[-1] - times[0]) / (len(times) - 1)

    def _now(self) -> float:
        if self.ids.is_cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter()
