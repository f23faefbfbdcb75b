"""Are an engine's files the ones that were built? Their bytes against the checksums in config.json.

Sizes are always checked, when an engine is opened. Reading every byte of a large engine would take longer than loading it, so
that is done behind the running engine, by a thread that nobody waits for: `engine.verified` says how it went.
"""

import hashlib
import os
import threading
import weakref
from pathlib import Path

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Engine
from omni_ros.errors import EngineError

MODES = (None, "sizes", "full")  # full: read everything before the engine is used; None: that, or behind it when it takes long
BYTES_PER_S = 1 << 30  # reading and SHA-256
QUICK_S = 2.0  # what an engine's start may take longer for it
CHUNK = 1 << 22
READ_BY_LOADING = ("model.onnx", "model.engine")  # always compared, when the engine is loaded: see graph_sha256, engine_sha256

one_at_a_time = threading.Lock()  # six engines that are read at once are not read sooner


def is_quick(config: EngineConfig) -> bool:
    return sum(config.files.get(name, 0) for name in config.checksums) <= QUICK_S * BYTES_PER_S


def check_sums(directory: Path, config: EngineConfig, wanted: "weakref.ref[Engine] | None" = None) -> None:
    """Raises EngineError naming the first file that differs. Stops early when nobody holds `wanted` any more."""
    for name, checksum in config.checksums.items():
        if name in READ_BY_LOADING:
            continue
        path, seen = directory / name, hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    seen.update(chunk)
                    if wanted is not None and wanted() is None:
                        return
        except OSError as e:
            raise EngineError(f"{path}: cannot be read ({e}); copy or build the engine again") from e
        if seen.hexdigest() != checksum:
            raise EngineError(f"{path}: damaged (its checksum differs from config.json); copy or build the engine again")


def check_sums_behind(engine: Engine) -> None:
    """Start a thread that sets `engine.verified`: True, or the error's text. It keeps neither engine nor process alive."""
    arguments = (weakref.ref(engine), engine.directory, engine.config)
    threading.Thread(target=_behind, args=arguments, name=f"verify {engine.config.engine}", daemon=True).start()


def _behind(engine: "weakref.ref[Engine]", directory: Path, config: EngineConfig) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread alone: a reply comes first
    result: bool | str = True
    with one_at_a_time:
        try:
            check_sums(directory, config, engine)
        except EngineError as e:
            result = str(e)
    if (held := engine()) is not None:
        held.verified = result
