"""Run requests from a JSON file through the engines: text, audio, image, video in; text and speech out.

    python -m offline.infer --engineDir ENGINES --inputFile in.json --outputFile out.json \\
        --enableAudioOutput --outputAudioDir speech/

in.json:  {"max_generate_length": 256, "requests": [{"messages": [{"role": "user", "content": [
              {"type": "text", "text": "What is this?"}, {"type": "image", "image": "photo.jpg"}]}]}]}

Media paths are relative to in.json. Sampling and speech parameters may stand in the file, for all requests, or in one
request: temperature, top_k, top_p, seed, talker_temperature, talker_top_k, talker_top_p, repetition_penalty,
max_audio_length (codec frames), max_generate_length (tokens), speaker.
"""

import argparse
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from offline.atomic import atomic_file
from omni_ros.errors import InputError, OmniError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request

PARAMETERS = (
    "max_generate_length",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "talker_temperature",
    "talker_top_k",
    "talker_top_p",
    "repetition_penalty",
    "max_audio_length",
    "speaker",
)


def read_requests(path: Path, audio_output: bool, streaming: bool) -> list[Request]:
    """Parse and check a request file. Raises InputError naming the file and the entry at fault."""
    try:
        file = json.loads(path.read_text())
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not valid JSON ({e})") from e
    if not isinstance(file, dict) or not isinstance(file.get("requests"), list) or not file["requests"]:
        raise InputError(f"{path}: must be an object with a non-empty list 'requests'")
    shared = _parameters(file, f"{path}", {"requests"})
    requests = []
    for i, entry in enumerate(file["requests"]):
        where = f"{path}: requests[{i}]"
        if not isinstance(entry, dict) or "messages" not in entry:
            raise InputError(f"{where} must be an object with 'messages'")
        parameters = {**shared, **_parameters(entry, where, {"messages"})}
        messages = [_resolve(m, path.parent) for m in entry["messages"]] if isinstance(entry["messages"], list) else None
        try:
            requests.append(Request(messages, audio_output=audio_output, streaming=streaming, **parameters))
        except InputError as e:
            raise InputError(f"{where}: {e}") from e
    return requests


def _parameters(entry: dict, where: str, others: set[str]) -> dict[str, Any]:
    unknown = sorted(set(entry) - set(PARAMETERS) - others)
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(PARAMETERS)}")
    return {k: v for k, v in entry.items() if k in PARAMETERS}


def _resolve(message: Any, folder: Path) -> Any:
    """Relative media paths count from the request file's folder."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    content = [
        {**part, part["type"]: str(folder / part[part["type"]])}
        if isinstance(part, dict) and part.get("type") in ("audio", "image", "video") and isinstance(part.get(part["type"]), str)
        else part
        for part in message["content"]
    ]
    return {**message, "content": content}


def run(pipeline: Pipeline, request: Request) -> tuple[Finished, np.ndarray]:
    """One turn to its end: its Finished event and all PCM, float32 [samples]."""
    pcm, finished = [np.zeros(0, np.float32)], None
    for event in pipeline.generate(request):
        if isinstance(event, AudioChunk):
            pcm.append(event.pcm)
        elif isinstance(event, Finished):
            finished = event
    return finished, np.concatenate(pcm)


def write_wav(path: Path, pcm: np.ndarray, sample_rate: int) -> None:
    """float32 -1..1 -> 16-bit mono WAV."""
    with atomic_file(path) as temporary, wave.open(str(temporary), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(sample_rate)
        f.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def respond(pipeline: Pipeline, request: Request, index: int, audio_dir: Path, save_codes: bool) -> dict[str, Any]:
    finished, pcm = run(pipeline, request)
    response = {
        "request_idx": index,
        "output_text": finished.text,
        "output_token_ids": finished.token_ids,
        "finish_reason": finished.reason,
    }
    if request.audio_output:
        rate = pipeline.models.speak().code2wav.sample_rate
        response.update(
            audio_finish_reason=finished.audio_reason,
            audio_file=None,
            audio_samples=len(pcm),
            audio_sample_rate=rate,
            audio_duration_ms=round(1e3 * len(pcm) / rate, 1),
        )
        if len(pcm):
            path = audio_dir / f"request_{index}.wav"
            write_wav(path, pcm, rate)
            response["audio_file"] = str(path)
        if save_codes:
            path = audio_dir / f"request_{index}_codes.npy"
            with atomic_file(path) as temporary, temporary.open("wb") as f:
                np.save(f, finished.codes)
            response["codes_file"] = str(path)
    response["metrics"] = finished.metrics
    return response


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m offline.infer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engineDir", type=Path, required=True, help="folder written by offline.build_engines")
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
    try:
        return infer(args)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def infer(args: argparse.Namespace) -> int:
    """Answer every request and write the response file; returns the exit code, 1 when a request failed."""
    requests = read_requests(args.inputFile, args.enableAudioOutput, args.enableThinkerTalkerStreaming)
    audio_dir = args.outputAudioDir or args.outputFile.parent
    for folder in (args.outputFile.parent, audio_dir):  # before the work, not after it
        folder.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.open(args.engineDir, args.threads)
    responses, failed = [], 0
    for index, request in enumerate(tqdm(requests, desc="requests", unit="request", disable=None)):
        try:
            responses.append(respond(pipeline, request, index, audio_dir, args.saveCodes))
        except OmniError as e:  # one bad request must not lose the others
            failed += 1
            print(f"error: request {index}: {e}", file=sys.stderr)
            responses.append({"request_idx": index, "error": {"type": type(e).__name__, "message": str(e)}})
    with atomic_file(args.outputFile) as temporary:
        temporary.write_text(json.dumps({"responses": responses}, indent=2, ensure_ascii=False) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
