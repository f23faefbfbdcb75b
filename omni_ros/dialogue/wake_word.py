"""A wake word in a 16 kHz stream: microWakeWord's small networks (package pymicro-wakeword, 3 ms per second of sound)."""

import importlib
import json
from pathlib import Path

import numpy as np

from omni_ros.errors import InputError

STEP = 160  # samples: 10 ms, the detector's own step


class WakeWord:
    """`name` is one of the package's models (okay_nabu, hey_jarvis, hey_mycroft, alexa) or the .json file of another.

    Raises InputError when it cannot be had.
    """

    def __init__(self, name: str) -> None:
        try:
            package = importlib.import_module("pymicro_wakeword")  # optional, so only where it is asked for
        except Exception as error:  # noqa: BLE001 - not installed, or a build that does not load here
            raise InputError(f"turn_start is wake_word, but {error}: pip install pymicro-wakeword") from error
        known, kind = {model.value: model for model in package.Model}, package.MicroWakeWord
        if name not in known and not name.endswith(".json"):
            raise InputError(f"wake_word is {name!r}, but must be one of {', '.join(known)} or the .json file of a model")
        try:
            self._word = kind.from_builtin(known[name]) if name in known else _load(kind, Path(name))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged description, or a library that does not load here
            raise InputError(f"wake_word {name}: cannot be loaded ({error})") from error
        self._features = package.MicroWakeWordFeatures()
        self._fresh = True

    def reset(self) -> None:
        """Forget what was heard, as after a gap in the stream."""
        if not self._fresh:  # the network is loaded again
            self._word.reset()
            self._features.reset()
            self._fresh = True

    def __call__(self, pcm: np.ndarray) -> np.ndarray | None:
        """Take float32 [n] in [-1, 1], and return what of it follows the wake word, or None when it was not said."""
        samples = (np.clip(pcm, -1, 1) * 32767).astype(np.int16)
        self._fresh = self._fresh and not samples.size
        for start in range(0, samples.size, STEP):
            piece = samples[start : start + STEP].tobytes()
            # every step of a piece counts, so all are taken before one is judged
            if any([self._word.process_streaming(features) for features in self._features.process_streaming(piece)]):
                return pcm[start + STEP :]
        return None


def _load(kind, description: Path):
    """The package does not look whether TensorFlow Lite could read a model, and ends the process when it could not."""
    model = description.parent / json.loads(description.read_text())["model"]
    with model.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise InputError(f"wake_word: {model} is no TensorFlow Lite model")
    return kind.from_config(description)
