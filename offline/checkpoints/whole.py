"""Quantised parts and the checkpoint that they were split from, joined to one folder: the form of newer Edge-LLM versions."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .checkpoint import Checkpoint, TensorInfo, write_safetensors
from .processor_files import copy_processor_files

SHARD_BYTES = 5 * 10**9


def join(root: Checkpoint, parts: list[Checkpoint], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write every tensor of `parts`, and of `root` what no part has, into `directory`, with root's names and config.json.

    One tensor is in memory at a time.
    """
    source = {name: root for name in root.tensors} | {name: part for part in parts for name in part.tensors}
    shards: list[list[str]] = [[]]
    used = 0
    for name in sorted(source):
        size = source[name].info(name).nbytes
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    total = sum(source[name].info(name).nbytes for name in source)
    with tqdm(total=total, unit="B", unit_scale=True, desc="joining", disable=None) as bar:

        def values(name: str, info: TensorInfo) -> Iterator[np.ndarray]:  # read when the writer asks for it
            yield source[name].read(name)
            bar.update(info.nbytes)

        for file, names in zip(files, shards):
            infos = {name: source[name].info(name) for name in names}
            write_safetensors(directory / file, {n: (i.dtype, i.shape, values(n, i)) for n, i in infos.items()})
    weight_map = {name: file for file, names in zip(files, shards) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = dict(root.config)
    for part in parts:
        config |= {k: v for k, v in part.config.items() if k == "nvfp4_heads"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    quant = quantization({name: part.info(name) for name, part in source.items()})
    (directory / "hf_quant_config.json").write_text(json.dumps(quant, indent=2) + "\n")
    copy_processor_files(root.directory, directory)


def quantization(tensors: dict[str, TensorInfo], **more: dict) -> dict:
    """Contents of hf_quant_config.json, as ModelOpt writes it: every matrix is NVFP4 but those that it names; where some are
    FP8, every matrix that is not 16 bit is named."""
    linears = [n.removesuffix(".weight") for n, info in tensors.items() if n.endswith(".weight") and len(info.shape) == 2]
    scaled = [n for n in linears if f"{n}.weight_scale" in tensors]
    fp8 = {n for n in scaled if f"{n}.weight_scale_2" not in tensors}
    kept = sorted(n for n in linears if f"{n}.weight_scale" not in tensors)
    four_bits = {"quant_algo": "NVFP4", "group_size": 16}
    mixed = {n: {"quant_algo": "FP8"} if n in fp8 else four_bits for n in scaled}
    algorithm = {"quant_algo": "MIXED_PRECISION", "quantized_layers": mixed} if fp8 else four_bits
    return {**more, "quantization": {**algorithm, "kv_cache_quant_algo": None, "exclude_modules": kept}}
