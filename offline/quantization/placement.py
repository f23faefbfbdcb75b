"""Modules of transformers with the weights of a checkpoint, on the devices that have room for them.

A module is made without weights; each tensor is read from its shard when its place is known. Decoder layers go onto the
devices in order while there is room. For a layer without room, its weights are read whenever it is used and forgotten again,
so any GPU that holds the rest and one layer will do, and is slower.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil  # type: ignore[import-untyped]
import torch
from accelerate import init_empty_weights
from torch.utils._pytree import tree_map

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint

READERS = 8  # files are read side by side: one reader gets a part of what a disk or a memory disk gives
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class Reader:
    """Tensors of a checkpoint, several files or places at once."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.threads = checkpoint, ThreadPoolExecutor(READERS)

    def read(self, names: list[str], device: torch.device, shape: torch.Size | None = None) -> torch.Tensor:
        """Tensors of one shape and type -> [names, *shape] on `device`; without `shape`, theirs is that of the first.

        Raises CheckpointError.
        """
        info = self.checkpoint.info(names[0])
        wanted = info.shape if shape is None else tuple(shape)
        dtype = TORCH_DTYPES.get(str(info.dtype))
        if dtype is None:
            raise CheckpointError(f"{self.checkpoint.directory}: {names[0]} is not a floating-point tensor of 16 or 32 bits")
        stack = torch.empty(len(names), *wanted, dtype=dtype, pin_memory=device.type == "cuda")
        buffers = stack.view(len(names), -1).view(torch.uint8).numpy()
        list(self.threads.map(lambda name, buffer: self.checkpoint.read_into(name, wanted, buffer), names, buffers))
        return stack.to(device, non_blocking=True)


class Placement:
    """`devices`: where weights may be; the first one also has what is no layer. `reserve`: bytes to keep free on each."""

    def __init__(self, reader: Reader, devices: list[torch.device], reserve: int):
        self.checkpoint, self.devices = reader.checkpoint, devices
        self.room = {device: free_bytes(device) - reserve for device in devices}
        self.reader = reader
        self.streamed: list[str] = []  # layers that are read again whenever they are used

    def put(self, prefix: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """The module `make` returns, with the tensors `prefix`.X of the checkpoint, on the first device.

        Raises CheckpointError when a tensor is missing or has another shape.
        """
        module = self._empty(make)
        self._fill(module, prefix, self.devices[0])
        return module

    def put_decoder(self, prefix: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """As `put`; `module.layers` are spread over the devices."""
        module = self._empty(make)
        layers, module.layers = module.layers, torch.nn.ModuleList()
        self._fill(module, prefix, self.devices[0])
        module.layers = layers
        sizes = [self.checkpoint.nbytes(f"{prefix}.layers.{i}.") for i in range(len(layers))]
        if sum(sizes) > sum(self.room.values()):  # one layer at a time needs a place of its own
            self.room[self.devices[-1]] -= max(sizes)
        for i, (layer, size) in enumerate(zip(layers, sizes)):
            name = f"{prefix}.layers.{i}"
            device = next((d for d in self.devices if self.room[d] >= size), None)
            if device is None:
                self.streamed.append(name)
                self._stream(layer, name, self.devices[-1])
            else:
                self._fill(layer, name, device)
                self._bring_inputs(layer, device)
        self._bring_inputs(module.norm, self.devices[0])
        return module

    def _empty(self, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        with init_empty_weights(include_buffers=False):
            module = make().eval().requires_grad_(False)
        return module

    def _fill(self, module: torch.nn.Module, prefix: str, device: torch.device) -> None:
        for buffer_name, buffer in module.named_buffers():
            owner, _, name = buffer_name.rpartition(".")
            setattr(module.get_submodule(owner), name, buffer.to(device))
        values = self._read(module, prefix, device)
        self.room[device] -= sum(v.numel() * v.element_size() for v in values.values())
        _assign(module, values)

    def _stream(self, layer: torch.nn.Module, name: str, device: torch.device) -> None:
        self._bring_inputs(layer, device, lambda: _assign(layer, self._read(layer, name, device)))
        empty = {n: p.data for n, p in layer.named_parameters()}
        layer.register_forward_hook(lambda *_: _assign(layer, empty))

    def _bring_inputs(self, layer: torch.nn.Module, device: torch.device, before: Callable[[], None] = lambda: None) -> None:
        def enter(_: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            before()
            return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (args, kwargs))

        layer.register_forward_pre_hook(enter, with_kwargs=True)

    def _read(self, module: torch.nn.Module, prefix: str, device: torch.device) -> dict[str, torch.Tensor]:
        """Parameter -> value on `device`. The experts of a layer are tensors of their own in a checkpoint, and two here."""
        values = {}
        for name, parameter in module.named_parameters():
            where, _, kind = name.rpartition(".")
            if kind in EXPERT_PARTS:
                parts = EXPERT_PARTS[kind]
                names = [f"{prefix}.{where}.{e}.{p}.weight" for e in range(len(parameter)) for p in parts]
                shape = parameter[0].unflatten(0, (len(parts), -1))[0].shape
            else:
                names, shape = [f"{prefix}.{name}"], parameter.shape
            values[name] = self.reader.read(names, device, shape).view(parameter.shape)
        return values


def _assign(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        owner, _, parameter = name.rpartition(".")
        setattr(module.get_submodule(owner), parameter, torch.nn.Parameter(value, requires_grad=False))


def free_bytes(device: torch.device) -> int:
    """Memory that nobody has taken: of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
