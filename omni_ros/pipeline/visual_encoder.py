"""Patches of any number of images and videos -> Thinker embeddings and deepstack features.

The arithmetic on grids follows transformers' vision_utils `get_vision_interpolation_indices_and_weights` and
`get_vision_position_ids`; patches come in merge-block order, as `to_patches` cuts them.
"""

from collections.abc import Callable

import numpy as np

from omni_ros.engines.config import VisualConfig
from omni_ros.engines.engine import Engine
from omni_ros.errors import InputError


class VisualEncoder:
    """Calls the visual engine on batches of frames of one size, so that cost is linear in the number of frames.

    `limits` of the engine: `max_patches` of a run, and `max_frames` if its memory was planned for that many (TensorRT: 1).
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        config: VisualConfig = engine.config.model
        self.hidden_size, self.levels = config.hidden_size, config.levels
        self.patch_width, self.merge, self.side = config.patch_width, config.merge_size, config.position_side
        axis_dim = config.head_dim // 2  # half the angles turn with the row, half with the column
        exponents = np.arange(0, axis_dim, 2, dtype=np.float32) / np.float32(axis_dim)
        self.frequencies = (1 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
        limits = engine.config.limits
        self.max_patches, self.max_frames = limits.max_patches, limits.max_frames

    def __call__(
        self, patches: np.ndarray, grid_thw: np.ndarray, check: Callable[[], None] = lambda: None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """patches float32 [sum(t*h*w), patch_width], grid_thw int64 [k, 3], one row per image or video.

        Returns k embeds, float32 [t*h*w / merge^2, hidden], and k deepstack, float32 [levels, t*h*w / merge^2, hidden].
        Raises InputError when the arrays disagree or one frame has more patches than the engine takes. `check`
        is called between runs and may raise.
        """
        self._validate(patches, grid_thw)
        ends = np.cumsum(grid_thw.prod(axis=1))
        embeds, deepstack = [], []
        for (t, h, w), end in zip(grid_thw.tolist(), ends.tolist()):
            frames = patches[end - t * h * w : end].reshape(t, h * w, self.patch_width)
            indices, weights, angles = self._grid_inputs(h, w)
            step = min(self.max_patches // (h * w), self.max_frames or t)
            runs = []
            for i in range(0, t, step):
                batch = frames[i : i + step]
                angle = np.broadcast_to(angles, (len(batch), *angles.shape))
                check()
                runs.append(
                    self.engine.run(
                        {
                            "patches": batch,
                            "pos_indices": indices,
                            "pos_weights": weights,
                            "cos": np.cos(angle),
                            "sin": np.sin(angle),
                        }
                    )
                )
            embeds.append(np.concatenate([r["embeds"] for r in runs]).astype(np.float32, copy=False))
            deepstack.append(np.concatenate([r["deepstack"] for r in runs], axis=1).astype(np.float32, copy=False))
        return embeds, deepstack

    def _grid_inputs(self, h: int, w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For one frame of h x w patches: bilinear taps [n, 4] and weights [n, 4], rotary angles [n, head_dim / 2]."""
        rows, columns = (
            axis.reshape(h // self.merge, self.merge, w // self.merge, self.merge).swapaxes(1, 2).ravel()
            for axis in np.indices((h, w))
        )
        row_taps, row_weights = self._axis_taps(rows, h)
        column_taps, column_weights = self._axis_taps(columns, w)
        indices = (row_taps[:, :, None] * self.side + column_taps[:, None, :]).reshape(-1, 4)
        weights = (row_weights[:, :, None] * column_weights[:, None, :]).reshape(-1, 4)
        angles = np.stack([rows, columns], axis=1).astype(np.float32)[:, :, None] * self.frequencies
        return indices, weights, angles.reshape(h * w, -1)

    def _axis_taps(self, index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Stretch the table's `side` positions over `size` patches, ends aligned: two taps and their weights, [n, 2]."""
        source = index.astype(np.float32) * np.float32(self.side - 1) / np.float32(max(size - 1, 1))
        taps = np.floor(source)[:, None] + np.arange(2, dtype=np.float32)
        weights = np.maximum(1 - np.abs(source[:, None] - taps), 0)
        return np.clip(taps, 0, self.side - 1).astype(np.int64), weights

    def _validate(self, patches: np.ndarray, grid_thw: np.ndarray) -> None:
        if grid_thw.ndim != 2 or grid_thw.shape[1] != 3 or (grid_thw < 1).any() or (grid_thw[:, 1:] % self.merge).any():
            raise InputError(f"grid_thw must be [k, 3], sides multiples of {self.merge}, got {grid_thw.tolist()}")
        wanted = (int(grid_thw.prod(axis=1).sum()), self.patch_width)
        if patches.shape != wanted:
            raise InputError(f"patches are {list(patches.shape)}, grid_thw {grid_thw.tolist()} needs {list(wanted)}")
        largest = grid_thw[:, 1:].prod(axis=1).max(initial=0)
        if largest > self.max_patches:
            raise InputError(
                f"an image of {largest} patches is more than the visual engine takes ({self.max_patches}); send a smaller image"
            )
