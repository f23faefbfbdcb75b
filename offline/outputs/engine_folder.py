"""The folder of one engine while it is built from an exported graph: what every backend's `build` fills.

config.json of the engine is the exported one with the limits it was built for and these keys besides:

    backend     "onnxruntime", "cuda" or "tensorrt": the folder of omni_ros/engines that runs it
    weights     what they became: "float32", "int4", "nvfp4", "as exported", ...
    dtype       of what goes in and out
    files       name -> size of every other file
    checksums   name -> SHA-256 of every other file
    graph_sha256   model.onnx's, where the engine has one
    self_check  what the engine should answer to a few inputs (self_check.py)
"""

import hashlib
import json
from pathlib import Path

from omni_ros import __version__
from omni_ros.errors import CheckpointError

from ..graphs.external_data import StoredGraph
from .graph_folder import files_of, read_sealed, sha256
from .self_check import set_bound, store

BLOCK = 1 << 20  # bytes copied and hashed at a time


class EngineFolder:
    """`config` may be changed until `write`; `checksums` are those of the files written so far."""

    def __init__(self, source: Path, directory: Path, place: Path | None = None):
        """`source`: the exported graph; `directory`: exists, and goes to `place` when it is complete.

        Raises CheckpointError when the exported graph is damaged.
        """
        self.source, self.directory, self.place = source, directory, place or directory
        self.config = read_sealed(source)
        self.config.setdefault("limits", {})
        self.checksums: dict[str, str] = {}

    @property
    def engine(self) -> str:
        """thinker, talker, code_predictor, code2wav, audio or visual."""
        return self.config["engine"]

    def copy(self, name: str) -> None:
        """Copy a file of the exported graph. Raises CheckpointError when it is not what the exporter wrote."""
        digest = hashlib.sha256()
        with (self.source / name).open("rb") as source, (self.directory / name).open("wb") as target:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
        self.checksums[name] = digest.hexdigest()
        if self.config["checksums"].get(name) != self.checksums[name]:
            raise CheckpointError(f"{self.source / name}: damaged (its checksum differs); export the checkpoint again")

    def copy_sidecars(self) -> None:
        """Everything beside the graph: embeddings, projections, tokenizer, processor settings."""
        for name in self.config["files"]:
            if name not in ("model.onnx", "model.onnx.data"):
                self.copy(name)

    def add_self_check(self, graph: StoredGraph | None = None) -> None:
        """Store what the engine should answer; `graph` is the exported graph with the weights that the build gives it."""
        store(graph or StoredGraph(self.source), self.directory, self.config)

    def write(self, backend: str, weights: str, dtype: str, graph_sha256: str | None = None) -> None:
        """config.json, when every other file is there: limits in the place of symbolic sizes, `dtype` in that of float16.

        `graph_sha256` is for an engine that was built from a lowered graph which it does not keep.
        """
        config, limits = self.config, self.config["limits"]
        for entry in config["inputs"] + config["outputs"] + config["state"]:
            entry["dtype"] = entry["dtype"].replace("float16", dtype)
            entry["shape"] = [limits.get(d, d) if isinstance(d, str) else d for d in entry["shape"]]
        config.update(backend=backend, weights=weights, dtype=dtype)
        if "self_check" in config:
            set_bound(config)
        config["provenance"].update(onnx_sha256=config["graph_sha256"], built_with=__version__)
        files = files_of(self.directory)
        config["files"] = {p.name: p.stat().st_size for p in files}
        config["checksums"] = {p.name: self.checksums.get(p.name) or sha256(p) for p in files}
        config["graph_sha256"] = graph_sha256 or config["checksums"].get("model.onnx", config["graph_sha256"])
        (self.directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
