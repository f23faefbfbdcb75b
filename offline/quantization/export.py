"""Ranges and the 16-bit checkpoint -> a checkpoint of a part in NVIDIA ModelOpt's format, one layer at a time.

Linears that read the same input are one product on a robot: q, k and v, or gate and up, get common scales, as ModelOpt's own
exporter gives them. test_quantize.py compares every tensor with what ModelOpt writes.
"""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from tqdm import tqdm

from ..checkpoints.checkpoint import read_header, write_safetensors
from . import encode
from .placement import EXPERT_PARTS, Reader

LAYER = re.compile(r"(.*\.layers\.\d+)\.")
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
LARGEST = 6 * 448  # E2M1's times E4M3's
WORKERS = 4  # layers at once
Arrays = dict[str, np.ndarray]


class Exporter:
    """`inputs`: largest input of every chosen module, of experts module.gate_up_proj and module.down_proj;
    `fp8`: which of them become FP8 rather than NVFP4."""

    def __init__(
        self, reader: Reader, chosen: list[str], inputs: dict[str, float], devices: list[torch.device], fp8: frozenset[str]
    ):
        self.reader, self.checkpoint, self.devices = reader, reader.checkpoint, devices
        self.chosen, self.inputs, self.fp8 = chosen, inputs, fp8

    def write(self, part: str, prefixes: tuple[str, ...], folder: Path) -> None:
        """Write tensors that begin with `prefixes` to `folder`, a shard for each layer, named without `part`."""
        names = [n for n in self.checkpoint.tensors if n.startswith(prefixes)]
        shards: dict[str, list[str]] = {}
        for name in names:
            match = LAYER.match(name)
            shards.setdefault(match[1] if match else part, []).append(name)
        folder.mkdir(exist_ok=True)
        files = {owner: f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i, owner in enumerate(shards)}

        def one(number: int, owner: str) -> None:
            if not (folder / files[owner]).exists():  # else an earlier run wrote it
                device = self.devices[number % len(self.devices)]
                self._write_shard(part, shards[owner], folder / files[owner], device)

        with ThreadPoolExecutor(WORKERS) as workers, tqdm(total=len(shards), desc=f"writing {part}", unit="layer") as bar:
            for done in [workers.submit(one, i, owner) for i, owner in enumerate(shards)]:
                done.result()
                bar.update()
        tensors = {name: file for file in files.values() for name in read_header(folder / file)}
        index = {"metadata": {}, "weight_map": tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _write_shard(self, part: str, names: list[str], file: Path, device: torch.device) -> None:
        quantised = self._quantised(names, device)
        tensors: dict[str, Any] = {}
        for name in names:
            key, info = name.removeprefix(f"{part}."), self.checkpoint.info(name)
            made = quantised.get(name)
            if made is None:
                tensors[key] = (info.dtype, info.shape, map(self.checkpoint.read, [name]))
            else:
                tensors |= {f"{key.removesuffix('weight')}{k}": (v.dtype, v.shape, [v]) for k, v in made.items()}
        partial = file.with_suffix(".partial")
        write_safetensors(partial, tensors)
        os.replace(partial, file)

    def _quantised(self, names: list[str], device: torch.device) -> dict[str, Arrays]:
        """Weight's name -> its tensors, by the last part of their names, of those in `names` that are chosen."""
        made: dict[str, Arrays] = {}
        present = {n.removesuffix(".weight") for n in names}
        for module in self.chosen:
            if module in present:
                made[f"{module}.weight"] = self._linear(module, device)
            elif f"{module}.0.down_proj" in present:
                for kind in EXPERT_PARTS:
                    made |= self._experts(module, kind, device)
        return made

    def _linear(self, module: str, device: torch.device) -> Arrays:
        group = self._group(module)
        weight = self.reader.read([f"{module}.weight"], device)
        if module in self.fp8:
            codes, scale = encode.fp8(weight[0])
            return {
                "weight": codes.view(torch.uint8).cpu().numpy().view(ml_dtypes.float8_e4m3fn),
                "weight_scale": np.array(scale.cpu().numpy()),
                "input_scale": np.array(np.float32(self.inputs[module]) / np.float32(encode.E4M3_MAX)),
            }
        largest = max(float(self.reader.read([f"{n}.weight"], device).abs().amax()) for n in group)
        scale_2 = _not_zero(torch.tensor([largest], device=device) / LARGEST)
        return _arrays(*encode.nvfp4(weight, scale_2), scale_2, max(self.inputs[n] for n in group))[0]

    def _group(self, module: str) -> list[str]:
        """The chosen modules that read the same input as `module`, with itself."""
        owner, _, name = module.rpartition(".")
        together = next((group for group in TOGETHER if name in group), (name,))
        return [n for n in (f"{owner}.{other}" for other in together) if n in self.inputs]

    def _experts(self, module: str, kind: str, device: torch.device) -> dict[str, Arrays]:
        parts, count = EXPERT_PARTS[kind], 0
        while f"{module}.{count}.{parts[0]}.weight" in self.checkpoint:
            count += 1
        names = [f"{module}.{e}.{p}.weight" for e in range(count) for p in parts]
        weights = self.reader.read(names, device)
        largest = weights.flatten(1).abs().amax(1).float().view(count, len(parts)).amax(1)
        scale_2 = _not_zero(largest / LARGEST).repeat_interleave(len(parts))
        return dict(zip(names, _arrays(*encode.nvfp4(weights, scale_2), scale_2, self.inputs[f"{module}.{kind}"])))


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 1.0, scale)  # all weights are zero


def _arrays(codes: torch.Tensor, scales: torch.Tensor, scale_2: torch.Tensor, largest_input: float) -> list[Arrays]:
    """Of a stack of matrices [n, ...] that read the same input."""
    stored = scales.view(torch.uint8).cpu().numpy().view(ml_dtypes.float8_e4m3fn)
    input_scale = np.float32(largest_input) / np.float32(LARGEST)
    return [
        {"weight": w, "weight_scale": s, "weight_scale_2": np.array(s2), "input_scale": np.array(input_scale)}
        for w, s, s2 in zip(codes.cpu().numpy(), stored, scale_2.cpu().numpy())
    ]
