"""A Thinker's or Talker's decode step: one row through all layers, replayed as one CUDA graph.

Memory is allocated once; the KV cache belongs to the engine whose prefill fills it. One copy brings the row in, one
brings the results out, and both are part of the graph.
"""
from pathlib import Path

import numpy as np

from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.cuda_kernels import DeviceWeights, Kernels, float_bytes
from omni_ros.engines.cuda_layers import Layers, Rotation
from omni_ros.errors import InputError


class CudaDecoder:
    device: CudaDevice | None = None

    def __init__(self, directory: Path, config: dict, keys: list[int], values: list[int]):
        """keys, values: addresses of each layer's cache, float16 [kv_heads, capacity, head_dim]."""
        shape = config["decoder"]
        self.device = CudaDevice(config["engine"])
        try:
            kernels = Kernels(self.device, shape["head_dim"], shape["num_heads"] // shape["num_kv_heads"])
            weights = DeviceWeights(self.device, directory)
            self.layers = Layers(self.device, kernels, weights, shape, "", keys, values, config["limits"]["capacity"])
            self.rotation, self.hidden, self.vocab = Rotation(shape), shape["hidden_size"], shape["vocab_size"]
            self.turned = self.hidden + shape["head_dim"]
            self.head = "thinker.lm_head" if config["engine"] == "thinker" else "talker.codec_head"
            self.accept = shape.get("accept_hidden_layer")  # of the Thinker: its output is what the Talker sees
            self.pinned_in = self.device.pinned(float_bytes(self.turned + 1))  # row, rotation, past as int32
            self.pinned_out = self.device.pinned(float_bytes(self.vocab + self.hidden))  # logits, hidden
            self.input, self.output = self.device.memory(self.pinned_in.nbytes), self.device.memory(self.pinned_out.nbytes)
            self.pinned_in[:] = 0
            self._step()  # once as it is: loads the kernels, which a capture may not
            self.device.wait()
            self.graph = self.device.capture(self._step)
        except BaseException:
            self.device.close()
            raise

    def _step(self) -> None:
        x, turn, past = (self.input + float_bytes(n) for n in (0, self.hidden, self.turned))
        hidden = self.output + float_bytes(self.vocab)
        self.device.upload(self.input, self.pinned_in)
        for layer in range(self.layers.shape["num_layers"]):
            self.layers.forward(layer, x, past, turn)
            if layer + 1 == self.accept:
                self.device.copy(hidden, x, float_bytes(self.hidden))
        self.layers.project([self.head], x, self.output, norm="norm.weight", normed=0 if self.accept else hidden)
        self.device.download(self.pinned_out, self.output)

    def run(self, row: np.ndarray, position: np.ndarray, past: int) -> tuple[np.ndarray, np.ndarray]:
        """row [1, hidden], position [3, 1] -> logits float32 [1, V] and hidden float32 [1, hidden].

        hidden is the Thinker's accept_hidden, the Talker's last_hidden. Row `past` of the cache is written.
        Raises InputError for other shapes.
        """
        if row.shape != (1, self.hidden) or position.shape != (3, 1):
            raise InputError(f"{self.device.name} takes inputs_embeds [1, {self.hidden}] and position_ids [3, 1] for one row, "
                             f"got {list(row.shape)} and {list(position.shape)}")
        floats = self.pinned_in.view(np.float32)
        floats[:self.hidden], floats[self.hidden:self.turned] = row[0], self.rotation(position[:, 0])
        floats[-1:].view(np.int32)[0] = past
        self.device.launch(self.graph)
        self.device.wait()
        out = self.pinned_out.view(np.float32)
        return out[:self.vocab].copy()[None], out[self.vocab:].copy()[None]

    def close(self) -> None:
        if self.device:
            self.device.close()

    __del__ = close
