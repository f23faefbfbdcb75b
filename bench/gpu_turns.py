"""Whole turns on one GPU: Thinker speed, codec frames, first sound, real-time factor, gaps in the speech."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.turns import Heard, listen
from offline.checkpoints.checkpoint import write_safetensors
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request
from omni_ros.preprocess.audio import log_mel

TEXT = """Good morning. Yesterday the weather was cold and heavy rain fell on the garden. Please look at the kitchen table, tell
me which cups and plates you see there, and remind me to buy bread and apples on the way."""
QUESTION = [{"role": "user", "content": TEXT}]
THINKER_TOKENS = 201  # 200 decode steps
FRAMES, TOKENS = 160, 52  # 12.8 s of speech and its text, 4 tokens a second
AUDIO_SECONDS, PICTURE = 4, (448, 448, 3)
TOKENS_PER_S, FIRST_PCM_MS, RTF = (">=", 350), ("<=", 120), ("<=", 0.05)  # goals
GREEDY = {"temperature": 0, "talker_temperature": 0}
METHOD = f"""\
Batch 1, medians; the first run of each kind warms up and does not count. Thinker: {THINKER_TOKENS - 1} tokens after the first,
no speech. Replies: {FRAMES} codec frames ({FRAMES * 0.08:.1f} s of speech) with {TOKENS} tokens of text, sampled as a request
is by default, timed from the call of `Pipeline.generate` to its events. Random weights end a reply by chance, so their end
tokens are switched off. Sound comes as {AUDIO_SECONDS} s of mel features, the picture as {PICTURE[0]} x {PICTURE[1]} pixels:
cutting it into patches and the encoders are part of the time to the first PCM. Real-time factor: from the request to
`Finished` / seconds of speech. The player starts with the first chunk; it runs dry when the next one is late."""


def measure(pipeline: Pipeline, repetitions: int) -> Part:
    never_end(pipeline)
    speech = {"max_generate_length": TOKENS, "max_audio_length": FRAMES, "seed": 0}
    text = {"max_generate_length": THINKER_TOKENS, "audio_output": False, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        sound = {"type": "audio", "audio": mel_features(Path(folder) / "sound.safetensors")}
        picture = {"type": "image", "image": np.random.default_rng(0).integers(0, 256, PICTURE, np.uint8)}
        requests = {
            "Thinker, greedy": Request(QUESTION, **text, **GREEDY),
            "Thinker, sampled": Request(QUESTION, **text),
            "one stage after the other": Request(QUESTION, streaming=False, **speech),
            "text": Request(QUESTION, **speech),
            "text and sound": Request(_with(sound), **speech),
            "text, sound and picture": Request(_with(sound, picture), **speech),
        }
        heard = {name: [listen(pipeline, r) for _ in range(repetitions + 1)][1:] for name, r in requests.items()}
    rate = pipeline.models.speak().code2wav.sample_rate
    median = functools.partial(_median, heard)
    metric = lambda name, key: median(name, lambda h: h.finished.metrics[key])  # noqa: E731
    rtf = lambda name: median(name, lambda h: h.seconds * rate / sum(n for _, n in h.chunks))  # noqa: E731
    rows = [
        Row("Thinker, greedy", metric("Thinker, greedy", "tokens_per_s"), "tokens/s", TOKENS_PER_S),
        Row("Thinker, sampled", metric("Thinker, sampled", "tokens_per_s"), "tokens/s"),
        Row("first token", 1e3 * metric("Thinker, greedy", "first_token_s"), "ms"),
        Row("codec frame (Talker + CodePredictor), nothing beside it", metric("one stage after the other", "ms_per_frame"), "ms"),
        Row("codec frame while Thinker and Code2Wav run", metric("text", "ms_per_frame"), "ms"),
    ]
    replies = ("text", "text and sound", "text, sound and picture")
    for name in replies:
        rows.append(
            Row(
                f"first PCM: {name}, {metric(name, 'prompt_tokens'):.0f} tokens",
                1e3 * median(name, lambda h: h.first_pcm),
                "ms",
                FIRST_PCM_MS,
            )
        )
    dry = [gaps(h.chunks, rate) for name in replies for h in heard[name]]
    rows += [Row(f"real-time factor of a whole reply: {name}", rtf(name), "", RTF) for name in replies]
    rows += [
        Row(f"player ran dry, times in the worst of {len(dry)} replies", max(count for count, _ in dry), "", ("<=", 0)),
        Row("silence inside the speech, worst reply", 1e3 * max(silence for _, silence in dry), "ms"),
    ]
    return Part(
        "Turns",
        METHOD,
        rows,
        {
            "tokens_per_s": metric("Thinker, greedy", "tokens_per_s"),
            "rtf": rtf("text"),
            "ms_per_frame": metric("one stage after the other", "ms_per_frame"),
            "first_pcm_s": median("text", lambda h: h.first_pcm),
            "runs": {name: [{**h.finished.metrics, "chunks": h.chunks} for h in hs] for name, hs in heard.items()},
        },
    )


def never_end(pipeline: Pipeline) -> None:
    """Replies and speech end at the length that a request allows, and only there."""
    pipeline.models.thinker.config.im_end_token_id = -1
    talker = pipeline.models.speak().talker
    size = talker.config.vocab_size
    talker.suppressed = np.arange(size - 1024, size)  # the end of speech is among them


def mel_features(path: Path) -> Path:
    """What `offline.preprocess_audio` would make of noise: it costs the encoder as much as any sound."""
    noise = np.random.default_rng(0).standard_normal(AUDIO_SECONDS * 16000).astype(np.float32) * np.float32(0.1)
    mel = log_mel(noise)
    write_safetensors(path, {"input_features": (mel.dtype, mel.shape, [mel])})
    return path


def gaps(chunks: list[tuple[float, int]], rate: int) -> tuple[int, float]:
    """How often, and for how many seconds, a player runs dry that starts at the first of `chunks` (arrival in s, samples)."""
    count, silence, runs_dry = 0, 0.0, chunks[0][0]
    for arrival, samples in chunks:
        late = max(0.0, arrival - runs_dry)
        count, silence = count + (late > 0), silence + late
        runs_dry = max(arrival, runs_dry) + samples / rate
    return count, silence


def _with(*media: dict) -> list[dict]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": TEXT}]}]


def _median(heard: dict[str, list[Heard]], name: str, value: Callable[[Heard], float]) -> float:
    return float(np.median([value(h) for h in heard[name]]))
