"""Decode speed against transformers on the same checkpoint, and what int4 weights cost in accuracy."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.llamacpp import LlamaCpp, write_gguf
from bench.models import ROOT
from bench.report import Part, Row
from bench.turns import QUESTION, greedy, listen
from offline.compare import compare
from omni_ros.pipeline.pipeline import Pipeline

Run = tuple[float, float, list[int]]  # tokens/s, codec frames/s, token ids
TOKENS, FRAMES = 48, 24  # per repetition
FORCED = 200  # tokens and frames for accuracy
METHOD = f"""\
{TOKENS} reply tokens, then {FRAMES} codec frames: greedy, batch 1, KV cache, the same prompt and checkpoint; from the
end of the first step to the end of the last. transformers runs `generate` in float32 as `from_pretrained` sets it up,
with as many threads as ours and with one, whichever is faster: where other programs want the cores, torch's threads
wait for each other. llama.cpp (`xllamacpp`) decodes the same prompt with the same Thinker, written as GGUF in float32 (KV
cache too) and in Q4_0 (KV cache float16), on as many threads as ours; its own count of tokens/s. Its threads spin, so where
other programs want the cores it loses more than ours. The fastest of several runs in turn. int4 (`--weights int4`) is
compared by feeding it the float32 engines' own inputs, {FORCED} tokens and {FORCED} frames. Random weights are the worst
case for it: they have no structure that survives rounding, and near-ties of router and logits flip."""


def measure(output: Path, threads: int, repetitions: int) -> Part:
    reference = Transformers(output / "checkpoint")
    exact, int4 = (Pipeline.open(output / name, threads) for name in ("engines", "engines_int4"))
    prompt = reference.inputs["input_ids"][0].tolist()
    llama, llama_q4 = (
        LlamaCpp(write_gguf(output / "checkpoint", output / f"{name}.gguf", q4), threads or os.cpu_count() or 1, exact=not q4)
        for name, q4 in (("thinker", False), ("thinker_q4_0", True))
    )
    contenders: dict[str, Callable[[], Run]] = {
        "transformers": lambda: reference.run(threads or os.cpu_count()),
        "transformers, 1 thread": lambda: reference.run(1),
        "float32": lambda: _run(exact),
        "int4": lambda: _run(int4),
        "llama.cpp": lambda: llama.run(prompt, TOKENS),
        "llama.cpp Q4_0": lambda: llama_q4.run(prompt, TOKENS),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):  # in turn, so that other load falls on all alike; the first warms up
        for name, run in contenders.items():
            result = run()
            if repetition:
                runs[name].append(result)
    speeds = {name: np.array([run[:2] for run in rs]).max(axis=0) for name, rs in runs.items()}  # (tokens, frames) per s
    peer = np.maximum(speeds["transformers"], speeds["transformers, 1 thread"])
    equal, llama_equal = (
        float(np.mean(np.array(runs["float32"][0][2]) == np.array(runs[name][0][2]))) for name in ("transformers", "llama.cpp")
    )
    loss = compare(exact, int4, [greedy(tokens=FORCED, frames=FORCED, streaming=False)])
    rows = [
        Row("Thinker tokens/s, float32 engine / transformers", speeds["float32"][0] / peer[0], "x", (">=", 1.4)),
        Row("Thinker tokens/s, int4 engine / transformers float32", speeds["int4"][0] / peer[0], "x", (">=", 4)),
        Row(
            "Thinker tokens/s, float32 engine / llama.cpp float32", speeds["float32"][0] / speeds["llama.cpp"][0], "x", (">=", 1)
        ),
        Row("Thinker tokens/s, int4 engine / llama.cpp Q4_0", speeds["int4"][0] / speeds["llama.cpp Q4_0"][0], "x", (">=", 0.9)),
        Row("codec frames/s (Talker + CodePredictor), float32 / transformers", speeds["float32"][1] / peer[1], "x"),
        Row("codec frames/s (Talker + CodePredictor), int4 / transformers", speeds["int4"][1] / peer[1], "x"),
        Row("Thinker tokens equal to transformers', float32", equal, "", (">=", 1)),
        Row("Thinker tokens equal to llama.cpp's, float32", llama_equal, "", (">=", 1)),
        Row("int4: Thinker's most likely token is float32's", loss["thinker"]["top1"]),
        Row("int4: KL divergence of the Thinker's distribution, mean", loss["thinker"]["kl"], "nat"),
        Row("int4: cosine of the Thinker's logits, mean", loss["thinker"]["cosine"]),
        Row("int4: Talker's most likely code 0 is float32's", loss["talker"]["top1"]),
        Row("int4: KL divergence of the Talker's distribution, mean", loss["talker"]["kl"], "nat"),
        Row("int4: CodePredictor's code 1 is float32's (greedy)", loss["code_predictor"]["code_1"]),
        Row("int4: CodePredictor's codes 1-15 are float32's (greedy)", loss["code_predictor"]["codes_1_to_15"]),
    ]
    return Part(
        "Decoding",
        METHOD,
        rows,
        {"tokens_and_frames_per_s": {name: [run[:2] for run in rs] for name, rs in runs.items()}, "int4_loss": loss},
    )


def _run(pipeline: Pipeline) -> Run:
    heard = listen(pipeline, greedy(tokens=TOKENS, frames=1, audio_output=False))
    speech = listen(pipeline, greedy(tokens=4, frames=FRAMES, streaming=False))
    return rate(heard.text_times), 1e3 / speech.finished.metrics["ms_per_frame"], heard.finished.token_ids


def rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


class Transformers:
    """The tests' reference model; each step's end is seen by a forward hook."""

    def __init__(self, checkpoint: Path):
        sys.path.insert(0, str(ROOT / "test"))
        from oracle import load  # torch and transformers take seconds to load: not for the other benchmarks

        self.oracle = load(checkpoint)
        self.model, self.inputs = self.oracle.model, self.oracle.inputs(QUESTION)
        self.times: dict[str, list[float]] = {"thinker": [], "talker": []}
        for name, module in (("thinker", self.model.thinker), ("talker", self.model.talker)):
            module.register_forward_hook(lambda *_, name=name: self.times[name].append(time.perf_counter()))

    def _generate(self, tokens: int, **options) -> Any:
        for times in self.times.values():
            times.clear()
        return self.model.generate(
            **self.inputs,
            thinker_max_new_tokens=tokens,
            thinker_do_sample=False,
            thinker_eos_token_id=self.model.config.im_end_token_id,
            **{"return_audio": False, **options},
        )

    def run(self, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        sequence = self._generate(TOKENS)
        tokens = getattr(sequence, "sequences", sequence)[0, self.inputs["input_ids"].shape[1] :].tolist()
        tokens_per_s = rate(self.times["thinker"])
        self.model.code2wav.chunked_decode = lambda codes, **_: codes[:, :1, :1]  # no part of the frame
        self._generate(
            4,
            return_audio=True,
            speaker="ethan",
            talker_do_sample=False,
            talker_max_new_tokens=FRAMES + 1,
            talker_repetition_penalty=1.0,
        )
        return tokens_per_s, rate(self.times["talker"]), tokens
