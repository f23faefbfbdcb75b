"""The folder of one exported graph: model.onnx, model.onnx.data, sidecars, and a config.json that seals them.

config.json of a sealed folder says where the graph came from (`provenance`) and, so that damage is seen before it is
run, the size and SHA-256 of every other file (`files`, `checksums`; `graph_sha256` is model.onnx's own).
"""

import hashlib
import json
from pathlib import Path

from omni_ros import __version__
from omni_ros.errors import CheckpointError


def seal(directory: Path, checkpoint: Path) -> None:
    """Complete config.json; files whose checksums it does not know from writing are read."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    known = config.get("checksums", {})
    config["provenance"] = {
        "checkpoint": checkpoint.resolve().name,
        "checkpoint_config_sha256": sha256(checkpoint / "config.json"),
        "omni_ros": __version__,
    }
    files = files_of(directory)
    config["files"] = {p.name: p.stat().st_size for p in files}
    config["checksums"] = {p.name: known.get(p.name) or sha256(p) for p in files}
    config["graph_sha256"] = config["checksums"]["model.onnx"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def read_sealed(source: Path) -> dict:
    """config.json of an exported graph whose files are all there as they were written, or a CheckpointError.

    Of the files only model.onnx is read whole; the others' checksums are for those who copy them.
    """
    path = source / "config.json"
    try:
        config = json.loads(path.read_text())
        sizes, checksum = dict(config["files"]), dict(config["checksums"])["model.onnx"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: missing or damaged ({e}); export the checkpoint again") from e
    for name, size in sizes.items():
        if not (source / name).is_file() or (source / name).stat().st_size != size:
            raise CheckpointError(f"{source / name}: missing or truncated; export the checkpoint again")
    if sha256(source / "model.onnx") != checksum:
        raise CheckpointError(f"{source / 'model.onnx'}: damaged (its checksum differs); export the checkpoint again")
    return config


def files_of(directory: Path) -> list[Path]:
    """Every file but config.json, by name."""
    return sorted(p for p in directory.iterdir() if p.is_file() and p.name != "config.json")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
