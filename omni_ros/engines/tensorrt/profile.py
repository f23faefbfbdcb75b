"""An optimisation profile of a TensorRT engine: the shapes that it takes, and what is recorded of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Tensor:
    """The two ends of an input or output."""

    dtype: np.dtype
    host: np.ndarray  # uint8, pinned
    address: int | None  # on the device; None for an input that TensorRT reads on the CPU

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """The first bytes of `host`, as an array."""
        count = int(np.prod(shape, dtype=np.int64))
        return self.host[: count * self.dtype.itemsize].view(self.dtype).reshape(shape)


@dataclass
class Profile:
    context: Any  # trt.IExecutionContext
    smallest: Shapes  # of the inputs that have symbolic dimensions
    largest: Shapes
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # pinned, of a single-shape profile
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    graphs: list = field(default_factory=list)  # one; two when state alternates between two buffers

    def fits(self, shapes: Shapes) -> bool:
        return all(
            all(low <= n <= high for low, n, high in zip(self.smallest[i], shapes[i], self.largest[i])) for i in self.smallest
        )

    def close(self) -> None:
        """Somebody may still have this object: the frame of a run that failed, in an error that was kept."""
        self.context, self.graphs = None, []
