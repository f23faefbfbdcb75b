"""What the one conversation of a TensorRT engine has on the GPU."""

from dataclasses import dataclass

from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import Running, State


@dataclass(frozen=True)
class StateBuffers:
    """Where a tensor of the state lies: a run reads one buffer and writes the other, the same one where it writes in place."""

    input: str
    output: str
    nbytes: int
    addresses: tuple[int, int]


class TensorRTState(State):
    """See engine.State. The buffers are the engine's, whose recorded graphs know their addresses; `parity`: which are read."""

    parity = 0

    def __init__(self, name: str, device: CudaDevice, running: Running, buffers: list[StateBuffers]):
        super().__init__(name, truncates=all(b.addresses[0] == b.addresses[1] for b in buffers))
        self.device, self.running, self.buffers = device, running, buffers

    def reset(self) -> None:
        super().reset()
        with self.running:
            if not self.device.closed:
                self.zero()

    def zero(self) -> None:
        """KV caches too: a masked row counts for nothing only as long as it holds numbers, and a bad turn may leave others."""
        for buffer in self.buffers:
            self.device.zero(buffer.addresses[self.parity], buffer.nbytes)

    def advance(self, rows: int) -> None:
        """A run has left its rows."""
        self.length += rows
        if not self.truncates:
            self.parity ^= 1
