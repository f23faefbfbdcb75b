"""Run requests from a JSON file through the engines: text, audio, image, video in; text and speech out.

    python -m offline.infer --engineDir ENGINES --inputFile in.json --outputFile out.json \\
        --enableAudioOutput --outputAudioDir speech/
    python -m offline.infer --engineDir ENG/thinker --multimodalEngineDir ENG/multimodal --talkerEngineDir ENG/talker \\
        --code2wavEngineDir ENG/code2wav --inputFile in.json --outputFile out.json

in.json:  {"max_generate_length": 256, "requests": [{"messages": [{"role": "user", "content": [
              {"type": "text", "text": "What is this?"}, {"type": "image", "image": "photo.jpg"}]}]}]}

Media paths are relative to in.json. Sampling and speech parameters may stand in the file, for all requests, or in one
request: temperature, top_k, top_p, seed, talker_temperature, talker_top_k, talker_top_p, repetition_penalty,
max_audio_length (codec frames), max_generate_length (tokens), speaker, runaway_limit (tokens or frames of mere repetition or
silence that end an answer with an error; 0, the default: none), special_tokens (false: those that a text spells are plain
text). Text answers need the Thinker and the encoders of
the media that are asked about; the CodePredictor is found beside the Talker. Answers are printed while they are made and
written as each is finished, so a run that is stopped keeps them.
"""

import argparse
import contextlib
import json
import signal
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omni_ros.errors import EngineError, OmniError
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta

from .inference.request_file import read_requests
from .outputs.atomic import atomic_file

SPEECH = ("talker", "code_predictor", "code2wav")


def engine_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Engine -> its folder, of those that are there. Raises EngineError when one that the options ask for is not."""
    if (args.engineDir / "config.json").is_file():  # the Thinker's own
        folders = {"thinker": args.engineDir}
        if args.multimodalEngineDir:
            if not args.multimodalEngineDir.is_dir():
                raise EngineError(f"{args.multimodalEngineDir}: not found; build the encoders into it, or leave the option out")
            folders |= {f"multimodal/{kind}": args.multimodalEngineDir / kind for kind in ("audio", "visual")}
        if args.talkerEngineDir:
            folders |= {"talker": args.talkerEngineDir, "code_predictor": args.talkerEngineDir.parent / "code_predictor"}
        if args.code2wavEngineDir:
            folders["code2wav"] = args.code2wavEngineDir
    else:
        folders = {name: args.engineDir / name for name in ENGINES}
    if args.enableAudioOutput:
        options = {"talker": "--talkerEngineDir", "code_predictor": "--talkerEngineDir", "code2wav": "--code2wavEngineDir"}
        for name in SPEECH:
            if name not in folders:
                raise EngineError(f"--enableAudioOutput needs the {name} engine: give {options[name]}")
            if not (folders[name] / "config.json").is_file():
                raise EngineError(f"{folders[name] / 'config.json'}: not found; --enableAudioOutput needs the {name} engine")
    return {name: path for name, path in folders.items() if name == "thinker" or (path / "config.json").is_file()}


def write_wav(path: Path, pcm: np.ndarray, sample_rate: int) -> None:
    """float32 -1..1 -> 16-bit mono WAV."""
    with atomic_file(path) as temporary, wave.open(str(temporary), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(sample_rate)
        f.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def respond(pipeline: Pipeline, request: Request, index: int, audio_dir: Path, save_codes: bool) -> dict[str, Any]:
    """One turn to its end, its text printed while it comes: the entry of the response file."""
    pcm, finished = [np.zeros(0, np.float32)], None
    for event in pipeline.generate(request):
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, AudioChunk):
            pcm.append(event.pcm)
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None  # the last event of every turn
    response = {
        "request_idx": index,
        "output_text": finished.text,
        "output_token_ids": finished.token_ids,
        "finish_reason": finished.reason,
    }
    if request.audio_output:
        samples, rate = np.concatenate(pcm), pipeline.models.speak().code2wav.sample_rate
        response.update(
            audio_finish_reason=finished.audio_reason,
            audio_file=None,
            audio_samples=len(samples),
            audio_sample_rate=rate,
            audio_duration_ms=round(1e3 * len(samples) / rate),
        )
        if len(samples):
            path = audio_dir / f"audio_req{index}_batch0.wav"
            write_wav(path, samples, rate)
            response["audio_file"] = str(path)
        if save_codes:
            path = audio_dir / f"codes_req{index}_batch0.npy"
            with atomic_file(path) as temporary, temporary.open("wb") as f:
                np.save(f, finished.codes)
            response["codes_file"] = str(path)
    response["metrics"] = finished.metrics
    return response


def infer(args: argparse.Namespace) -> int:
    """Answer every request and write the response file after each; returns the exit code, 1 when a request failed."""
    requests, warnings = read_requests(args.inputFile, args.enableAudioOutput, args.enableThinkerTalkerStreaming)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    audio_dir = args.outputAudioDir or args.outputFile.parent
    for folder in (args.outputFile.parent, audio_dir):  # before the work, not after it
        folder.mkdir(parents=True, exist_ok=True)
    if args.outputFile.is_dir():
        raise EngineError(f"{args.outputFile}: is a folder; --outputFile is the file to write")
    pipeline = Pipeline.open(args.engineDir, args.threads, engine_folders(args), args.enableAudioOutput)
    responses, failed = [], 0
    try:
        for index, request in enumerate(requests):
            print(f"[{index + 1}/{len(requests)}] ", end="", flush=True)
            try:
                responses.append(respond(pipeline, request, index, audio_dir, args.saveCodes))
                spoken = responses[-1].get("audio_file")
                print(f"\n  {spoken} ({responses[-1]['audio_duration_ms'] / 1e3:.2f} s)" if spoken else "")
            except OmniError as e:  # one bad request must not lose the others
                failed += 1
                print(flush=True)
                print(f"error: request {index}: {e}", file=sys.stderr)
                responses.append({"request_idx": index, "error": {"type": type(e).__name__, "message": str(e)}})
            _write(args.outputFile, responses)
    except KeyboardInterrupt:
        print(f"\nstopped: {len(responses)} of {len(requests)} responses are in {args.outputFile}", file=sys.stderr)
        return 130
    print(f"{len(responses) - failed} of {len(requests)} requests answered: {args.outputFile}")
    return 1 if failed else 0


def _write(path: Path, responses: list[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"responses": responses}, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__.replace("python -m offline", f"python -m {__package__}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engineDir", type=Path, required=True, help="folder of all engines, or the Thinker's own")
    parser.add_argument(
        "--multimodalEngineDir", type=Path, help="folder with audio/ and visual/, when --engineDir is the Thinker's"
    )
    parser.add_argument("--talkerEngineDir", type=Path, help="the Talker's, with the CodePredictor beside it in code_predictor/")
    parser.add_argument("--code2wavEngineDir", type=Path, help="Code2Wav's")
    parser.add_argument("--inputFile", type=Path, required=True, help="request file (see above)")
    parser.add_argument("--outputFile", type=Path, required=True, help="response file to write")
    parser.add_argument("--enableAudioOutput", action="store_true", help="speak the replies as well")
    parser.add_argument("--outputAudioDir", type=Path, help="folder for the WAV files (default: beside --outputFile)")
    parser.add_argument(
        "--enableThinkerTalkerStreaming",
        action="store_true",
        help="start speaking while the text is still being written (same tokens and codes)",
    )
    parser.add_argument("--saveCodes", action="store_true", help="also write the codec codes, .npy int64 [16, frames]")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per engine (default: every core)")
    args = parser.parse_args(argv)
    if args.saveCodes and not args.enableAudioOutput:
        parser.error("--saveCodes needs --enableAudioOutput")
    if not 0 <= args.threads <= 256:
        parser.error("--threads must be between 0 and 256")
    parts = ("multimodalEngineDir", "talkerEngineDir", "code2wavEngineDir")
    given = [f"--{name}" for name in parts if getattr(args, name)]
    if given and args.engineDir.is_dir() and not (args.engineDir / "config.json").is_file():
        parser.error(f"{', '.join(given)}: then --engineDir is the folder of the Thinker's engine, with its config.json")
    try:
        with _terminate_as_interrupt():
            return infer(args)
    except KeyboardInterrupt:
        print("stopped before anything was answered", file=sys.stderr)
        return 130
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
