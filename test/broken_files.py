"""For tests that break copies whose unbroken files are links to the originals."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace a linked file; writing into it would change the original."""
    path.unlink()
    path.write_bytes(content)


def edit_config(directory: Path, change: Callable[[dict], object]) -> None:
    """Replace config.json by one that `change` was applied to."""
    config = json.loads((directory / "config.json").read_text())
    change(config)
    write(directory / "config.json", json.dumps(config).encode())


def rebuild(path: Path, content: bytes) -> None:
    """Replace a linked file, and what config.json beside it says of its size and bytes."""
    write(path, content)

    def change(config: dict) -> None:
        config["files"][path.name] = len(content)
        config["checksums"][path.name] = hashlib.sha256(content).hexdigest()

    edit_config(path.parent, change)


# ---- changes of a Talker's config.json ------------------------------------------------------------------------------
def rename_input(c: dict) -> None:
    c["inputs"][0]["name"] = "embeds"


def change_input_shape(c: dict) -> None:
    c["inputs"][0]["shape"][-1] += 1


def drop_state(c: dict) -> None:
    del c["state"][-1]


def raise_capacity(c: dict) -> None:
    c["limits"]["capacity"] *= 2


def rename_position(c: dict) -> None:
    c["position"]["input"] = "length"


def drop_position(c: dict) -> None:
    del c["position"]
