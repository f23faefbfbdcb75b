"""A replay's folder: conversation.json, conversation.wav (left: the microphone, right: the robot), speech.npz, latency plots.

It appears whole or not at all: it is written beside its place and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import wave
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from omni_ros.errors import InputError
from omni_ros.replay.conversation import HEARD_RATE, SPOKEN_RATE, Conversation, Turn, timeline

FORMAT = 1  # of conversation.json
GAP = 0.1  # seconds: microphones deliver with less jitter


def check_new(folder: Path) -> None:
    """Raises InputError where a result could not be written, before the work is done."""
    if folder.exists():
        raise InputError(f"{folder}: exists; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: cannot be made, {folder.absolute().parent} is no folder")


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` with what `fill` writes into a folder of its own first."""
    check_new(folder)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        fill(made)
        made.chmod(0o755)
        os.rename(made, folder)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written ({error})") from error
        raise


def write_conversation(folder: Path, conversation: Conversation, facts: dict[str, Any]) -> None:
    """The JSON, the sound on one timeline, and codes and samples of every answer."""
    turns = []
    for turn in conversation.turns:
        values = {name: value for name, value in asdict(turn).items() if name not in ("codes", "pcm")}
        turns.append(values | {"frames": turn.codes.shape[1], "samples": turn.pcm.size, "pcm_sha256": _sha256(turn.pcm)})
    content = {
        "format": FORMAT,
        **facts,
        "user_speaking": conversation.user_speaking,
        "turns": turns,
        "history": conversation.history,
        "problems": conversation.problems,
    }
    (folder / "conversation.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    arrays = {
        f"{kind}_{number}": getattr(turn, kind) for number, turn in enumerate(conversation.turns) for kind in ("codes", "pcm")
    }
    np.savez_compressed(folder / "speech.npz", **arrays)
    _write_wav(folder / "conversation.wav", conversation)


def read_conversation(folder: Path) -> tuple[Conversation, dict[str, Any]]:
    """Turns and problems of an earlier replay, and its facts. Raises InputError that names the file."""
    path = folder / "conversation.json"
    try:
        facts = json.loads(path.read_text())
        if facts.pop("format") != FORMAT:
            raise ValueError("made by another version")
        conversation = Conversation(user_speaking=facts["user_speaking"], history=facts["history"], problems=facts["problems"])
        with np.load(folder / "speech.npz") as arrays:
            for number, values in enumerate(facts["turns"]):
                sound = {kind: arrays[f"{kind}_{number}"] for kind in ("codes", "pcm")}
                own = {name: values[name] for name in Turn.__dataclass_fields__ if name in values}
                conversation.turns.append(Turn(**own, **sound))
    except Exception as error:  # noqa: BLE001 - of a damaged archive NumPy raises several kinds
        raise InputError(f"{path}: is no result of a replay, or a damaged one ({type(error).__name__}: {error})") from error
    return conversation, facts


def _sha256(pcm: np.ndarray) -> str:
    return hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()


def _write_wav(path: Path, conversation: Conversation) -> None:
    heard, spoken = timeline(conversation.heard, HEARD_RATE, GAP), timeline(conversation.spoken, SPOKEN_RATE)
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SPOKEN_RATE)
    frame = av.AudioFrame.from_ndarray(heard[None], format="s16", layout="mono")
    frame.sample_rate = HEARD_RATE
    pieces = [out.to_ndarray()[0] for given in ([frame, None] if heard.size else []) for out in resampler.resample(given)]
    channels = [np.concatenate([*pieces, np.zeros(0, np.int16)]), spoken]
    both = np.zeros((max(channel.size for channel in channels), 2), "<i2")
    for number, channel in enumerate(channels):
        both[: channel.size, number] = channel
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, SPOKEN_RATE, 0, "NONE", "left: the microphone, right: the robot"))
        file.writeframes(both.tobytes())
