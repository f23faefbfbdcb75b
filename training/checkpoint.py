"""The trained parts -> a checkpoint folder that transformers and omni_ros load: 16 bit, one tensor per expert.

python -m training.checkpoint BASE RUN OUT
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training import dims, loop
from training.model.code2wav import Code2Wav
from training.model.talker import Talker
from training.model.thinker import Thinker


def load_config(base: str | Path) -> dict:
    """config.json with the Talker's number of experts under the name that the modules use."""
    c = json.loads((Path(base) / "config.json").read_text())
    text = c["talker_config"]["text_config"]
    text["num_experts"] = text["num_local_experts"]
    return c


def build(config: dict) -> tuple[Thinker, Talker, Code2Wav]:
    """The three parts with random weights."""
    return (
        Thinker(config["thinker_config"], dims.GRID),
        Talker(config["talker_config"]),
        Code2Wav(config["code2wav_config"]),
    )


def published(prefix: str, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of published checkpoints."""
    for name, value in state.items():
        name = f"{prefix}.{name}"
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                gate, up = both.chunk(2)
                yield name.replace("gate_up_proj", f"{e}.gate_proj.weight"), gate
                yield name.replace("gate_up_proj", f"{e}.up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(value):
                yield name.replace("down_proj", f"{e}.down_proj.weight"), down
        else:
            yield name, value


def write(
    out: Path, base: Path, thinker: Thinker, talker: Talker, code2wav: Code2Wav, dtype: torch.dtype = torch.float16
) -> None:
    """`out`: BASE's files but the embedding, which is among the weights, and model.safetensors."""
    shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("embedding.pt"))
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = str(dtype).split(".")[1]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    parts = {"thinker": thinker, "talker": talker, "code2wav": code2wav}
    tensors = {n: v.detach().to(dtype).contiguous() for p, m in parts.items() for n, v in published(p, m.state_dict())}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("run", type=Path, help="folder with thinker.pt, talker.pt and code2wav.pt")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    parts = dict(zip(("thinker", "talker", "code2wav"), build(load_config(args.base))))
    for name, part in parts.items():
        loop.load(args.run / f"{name}.pt", **{name: part})
    write(args.out, args.base, **parts)
    parameters = sum(p.numel() for m in parts.values() for p in m.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {(args.out / 'model.safetensors').stat().st_size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
