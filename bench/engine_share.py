"""How much of the critical path is spent inside the engines, the rest being our own Python."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.turns import Heard, greedy, listen, question_with_media
from offline.quantization.spy import Call, spy
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

GOAL = (">=", 0.9)
METHOD = """\
The critical path is what the listener waits for. Stages one after the other: every engine call and all Python between
them. Streaming, until the first PCM: the calls that it needs (encoders, Thinker and Talker prefill, first
CodePredictor and Code2Wav call) against the time until it arrives. Streaming, the Talker's stage: its own two engines
against the time from its first call to its last. Engine calls are timed from outside, as `engine.run`. Medians."""
SAMPLED = {"temperature": 0.7, "talker_temperature": 0.9, "seed": 0}  # the Request's own settings


def measure(output: Path, threads: int, repetitions: int) -> Part:
    pipeline = Pipeline.open(output / "engines", threads)
    sampled = {**vars(greedy()), **SAMPLED}
    kinds = {  # name -> request, how much of its turn is the critical path
        "whole turn, stages one after the other, greedy": (greedy(streaming=False), _whole),
        "whole turn, stages one after the other, sampled": (Request(**{**sampled, "streaming": False}), _whole),
        "request to first PCM, streaming, sampled": (Request(**sampled), _first_pcm),
        "request to first PCM, streaming, with picture and sound": (greedy(question_with_media()), _first_pcm),
        "Talker stage, streaming, sampled": (Request(**sampled), _talker),
    }
    shares: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, dict[str, float]] = {}
    for repetition in range(repetitions + 1):
        for name, (request, share) in kinds.items():
            with spy(pipeline) as calls:
                heard = listen(pipeline, request)
            if repetition:
                shares[name].append(share(heard, calls))
            seconds[name] = {"turn": heard.seconds, "first_pcm": heard.first_pcm, **_seconds(calls)}
    rows = [Row(name, float(np.median(values)), "", GOAL) for name, values in shares.items()]
    return Part("Time inside the engines", METHOD, rows, {"shares": shares, "seconds": seconds})


def _whole(heard: Heard, calls: list[Call]) -> float:
    return sum(c.seconds for c in calls) / heard.seconds


def _first_pcm(heard: Heard, calls: list[Call]) -> float:
    """Encoders and prompts, which may take several calls, and the first call of the others."""
    path = [c for c in calls if c.engine.startswith("multimodal/")]
    path += [c for c in calls if c.engine in ("thinker", "talker") and len(c.inputs["inputs_embeds"]) > 1]
    path += [next(c for c in calls if c.engine == name) for name in ("code_predictor", "code2wav")]
    return sum(c.seconds for c in path) / heard.first_pcm


def _talker(heard: Heard, calls: list[Call]) -> float:
    own = [c for c in calls if c.engine in ("talker", "code_predictor")]
    return sum(c.seconds for c in own) / (max(c.end for c in own) - min(c.start for c in own))


def _seconds(calls: list[Call]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for call in calls:
        total[call.engine] += call.seconds
    return dict(total)
