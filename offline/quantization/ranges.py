"""What calibration looks at: the largest input of every module, and which experts a router chooses.

ModelOpt's "max" calibration in other words: a module's input range is the largest magnitude that any row of any sample fed
it. Rows that only fill up a batch are left out. The experts of a layer are one grouped product, not a loop over them.
"""

import functools

import torch
from torch.nn import functional

GROUPED_ROWS = 8192  # whose copies, one for each of their experts, are in memory together: 2 GB for 30B-A3B


class Ranges:
    """`inputs`: module (of experts: module.gate_up_proj, module.down_proj) -> float32 scalar; `rows`: MoE layer -> int64
    [experts]. `valid`, bool, has an element for each row that is fed now, or is None if all are real."""

    def __init__(self, chosen: list[str]):
        self.chosen = set(chosen)
        self.inputs: dict[str, torch.Tensor] = {}
        self.rows: dict[str, torch.Tensor] = {}
        self.valid: torch.Tensor | None = None

    def watch(self, prefix: str, model: torch.nn.Module) -> None:
        """Look at the chosen modules of `model`, whose modules are named `prefix`.X in the checkpoint."""
        for suffix, module in model.named_modules():
            name = f"{prefix}.{suffix}" if suffix else prefix
            if hasattr(module, "gate_up_proj") and hasattr(module, "num_experts"):
                module.forward = functools.partial(self._experts, name, module)
            elif name in self.chosen:
                module.register_forward_pre_hook(lambda _, args, name=name: self.see(name, args[0]))

    def see(self, name: str, fed: torch.Tensor) -> None:
        """fed [..., channels] goes into `name`, which is looked at if it is chosen."""
        if name in self.chosen:
            self._keep(name, fed, self._real(fed.device))

    def _real(self, device: torch.device) -> torch.Tensor | None:
        return None if self.valid is None else self.valid.flatten().to(device)

    def _keep(self, name: str, fed: torch.Tensor, real: torch.Tensor | None) -> None:
        largest = fed.abs().amax(-1).flatten().float()
        if real is not None:
            largest = largest.where(real, 0)
        before = self.inputs.get(name)
        self.inputs[name] = largest.amax() if before is None else torch.maximum(before, largest.amax())

    def _experts(
        self, name: str, experts: torch.nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The experts' forward: hidden [rows, H], their experts and what these count [rows, k] -> [rows, H]."""
        real, layer = self._real(hidden.device), name.removesuffix(".experts")
        reached = torch.bincount((index if real is None else index[real]).flatten(), minlength=experts.num_experts)
        self.rows[layer] = self.rows[layer] + reached if layer in self.rows else reached
        if name in self.chosen:
            self._keep(f"{name}.gate_up_proj", hidden, real)
        parts = []
        for start in range(0, len(hidden), GROUPED_ROWS):
            piece, k = slice(start, start + GROUPED_ROWS), index.shape[1]
            order = index[piece].flatten().argsort(stable=True)  # row * k + choice, sorted by expert
            ends = torch.bincount(index[piece].flatten(), minlength=experts.num_experts).cumsum(0).to(torch.int32)
            gate, up = grouped(hidden[piece][order // k], experts.gate_up_proj, ends).chunk(2, -1)
            inner = experts.act_fn(gate) * up
            if name in self.chosen:
                self._keep(f"{name}.down_proj", inner, None if real is None else real[piece][order // k])
            out = grouped(inner, experts.down_proj, ends)
            back = torch.empty_like(out)
            back[order] = out * weights[piece].flatten()[order, None].to(out.dtype)
            parts.append(back.view(-1, k, out.shape[1]).sum(1))
        return torch.cat(parts)


def grouped(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """rows [n, inputs], sorted by expert; weights [experts, outputs, inputs]; ends int32 [experts]: expert e's rows end
    before ends[e]. Returns [n, outputs]."""
    if rows.is_cuda and rows.dtype == torch.bfloat16:
        return functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends)
    out, start = rows.new_empty(len(rows), weights.shape[1]), 0
    for expert, end in enumerate(ends.tolist()):
        if start < end:
            torch.mm(rows[start:end], weights[expert].T, out=out[start:end])
        start = end
    return out
