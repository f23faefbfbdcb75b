"""One optimiser step as a CUDA graph (plain on a CPU), a learning rate by the clock, averaged weights, resuming, a log."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def arguments(description: str) -> argparse.ArgumentParser:
    """What every training program takes; each adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path, help="folder of the data that the run makes")
    parser.add_argument("base", type=Path, help="folder of training.base: tokenizer, config.json, embedding.pt")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--until", type=float, help="be done at this time (seconds since 1970)")
    parser.add_argument("--seconds", type=float, default=400.0, help="or after so long")
    parser.add_argument(
        "--span",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="part of the whole training that this run is; 0 0.5 and then 0.5 1 are one training in two runs",
    )
    parser.add_argument("--resume", type=Path, help="results of the run before: a folder with NAME.state.pt or NAME.pt")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches")
    parser.add_argument("--seed", type=int, default=0)
    return parser  # fmt: skip


def device() -> torch.device:
    """The GPU, with TF32 where float32 is asked for, or the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Trainer:
    """`loss(batch) -> {"loss": ..., more to log}`; a batch is a dict of tensors whose shapes never change.

    The learning rate warms up over `warm` steps and follows a cosine over the whole training, of which this run is `span`;
    how far it is, the clock says. Averages of the weights (exponential, `ema`) are what is evaluated and written.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        loss: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        seconds: float,
        lr: float,
        device: torch.device,
        span: tuple[float, float] = (0.0, 1.0),
        log: Path | None = None,
        weight_decay: float = 0.01,
        ema: float = 0.999,
        clip: float = 1.0,
        warm: int = 100,
        betas: tuple[float, float] = (0.9, 0.98),
    ):
        self.loss, self.seconds, self.peak, self.device, self.span, self.clip, self.warm = (
            loss, seconds, lr, device, span, clip, warm)  # fmt: skip
        self.params = [p for m in modules for p in m.parameters() if p.requires_grad]
        on_gpu = device.type == "cuda"
        self.lr = torch.tensor(lr, device=device) if on_gpu else lr
        groups = [
            {"params": [p for p in self.params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.opt = torch.optim.AdamW(groups, lr=self.lr, betas=betas, **({"fused": True, "capturable": True} if on_gpu else {}))
        self.average = [p.detach().clone() for p in self.params]
        self.ema, self.steps, self.steps_before, self.graph, self.start = ema, 0, 0, None, time.time()
        self.log_file = open(log, "a") if log else None

    def fraction(self) -> float:
        """How far the whole training is."""
        a, b = self.span
        return min(b, a + (b - a) * (time.time() - self.start) / self.seconds)

    def going(self) -> bool:
        return time.time() - self.start < self.seconds

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False, enabled=self.device.type == "cuda"):
            out = self.loss(batch)
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.clip, foreach=True)
        self.opt.step()
        torch._foreach_lerp_(self.average, self.params, 1 - self.ema)
        return {k: v.detach() for k, v in out.items()}

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step -> what the loss returned; on a GPU these tensors are overwritten by the next step."""
        self.rate = (
            self.peak * min(1, (self.steps + 1) / self.warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.fraction())))
        )
        self.steps += 1
        if self.device.type != "cuda":
            for g in self.opt.param_groups:
                g["lr"] = self.rate
            self.opt.zero_grad()
            return self._step(batch)
        self.lr.fill_(self.rate)
        if self.graph is None:
            self._record(batch)
        for k, v in batch.items():
            self.static[k].copy_(v, non_blocking=True)
        self.graph.replay()
        return self.out

    def _record(self, batch: dict[str, Tensor]) -> None:
        """Three ordinary steps, as capturing needs them, then the graph."""
        self.static = {k: v.clone() for k, v in batch.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.opt.zero_grad(set_to_none=True)
                self._step(self.static)
        torch.cuda.current_stream().wait_stream(side)
        self.opt.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = self._step(self.static)

    def swap(self) -> None:
        """Exchange the weights with their average, for an evaluation or the file; call again to go on."""
        with torch.no_grad():
            for p, a in zip(self.params, self.average):
                saved = p.detach().clone()
                p.copy_(a)
                a.copy_(saved)

    def log(self, name: str, values: dict) -> None:
        """A line on the screen and in the log: name, seconds of this run, step, learning rate, values."""
        values = {k: round(v.item() if isinstance(v, Tensor) else v, 4) for k, v in values.items()}
        seconds, step = round(time.time() - self.start), self.steps + self.steps_before
        print(f"{name} {seconds}s step {step} {values}", flush=True)
        if self.log_file:
            self.log_file.write(json.dumps({"name": name, "seconds": seconds, "step": step, "lr": self.rate, **values}) + "\n")
            self.log_file.flush()

    def state(self) -> dict:
        """All that going on exactly needs: weights, their averages, the optimiser's moments, the number of steps."""
        return {
            "params": [p.detach().cpu() for p in self.params],
            "average": [a.cpu() for a in self.average],
            "optimiser": self.opt.state_dict()["state"],
            "steps": self.steps + self.steps_before,
        }

    def load_state(self, state: dict) -> None:
        with torch.no_grad():
            for mine, saved in ((self.params, state["params"]), (self.average, state["average"])):
                for p, s in zip(mine, saved, strict=True):
                    p.copy_(s)
        self.opt.load_state_dict({"state": state["optimiser"], "param_groups": self.opt.state_dict()["param_groups"]})
        self.steps_before = state["steps"]


def save(path: Path, **parts) -> None:
    """State dicts in float16 under their names, as the assembly reads them."""
    out = {}
    for name, part in parts.items():
        state = part.state_dict() if isinstance(part, nn.Module) else part
        out[name] = {k: v.detach().half().cpu() if v.is_floating_point() else v.detach().cpu() for k, v in state.items()}
    torch.save(out, path)


def load(path: Path, **parts: nn.Module) -> None:
    """The inverse of `save`."""
    states = torch.load(path, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in states[name].items()})


def resume(folder: Path | None, name: str, trainer: Trainer, **parts: nn.Module) -> bool:
    """Go on where the run before ended: exactly with `NAME.state.pt`, from the written weights with `NAME.pt` alone."""
    if folder is None:
        return False
    if (folder / f"{name}.state.pt").is_file():
        trainer.load_state(torch.load(folder / f"{name}.state.pt", map_location=trainer.device))
    else:
        load(folder / f"{name}.pt", **parts)
        with torch.no_grad():
            for a, p in zip(trainer.average, trainer.params):
                a.copy_(p)
    return True
