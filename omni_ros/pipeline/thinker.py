"""Thinker: prompt rows in, reply tokens out, one per step."""

import numpy as np

from omni_ros.engines.engine import Engine
from omni_ros.engines.sidecar import Embedding
from omni_ros.pipeline.prompt import Prompt


class Thinker:
    """Follows Qwen3OmniMoeThinkerForConditionalGeneration with batch 1."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.model = engine.config["model"]
        self.embedding = Embedding(engine.directory / "embedding.safetensors")
        self.capacity = engine.config["limits"]["capacity"]
        self.deepstack_dtype = next(i["dtype"] for i in engine.config["inputs"] if i["name"] == "deepstack")
        self.text_deepstack = np.zeros((self.model["num_deepstack"], 1, self.model["hidden_size"]), self.deepstack_dtype)
        self.next_position = 0.0

    def prefill(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits [V] of the first reply token and accept_hidden [S, H] for the Talker's media rows."""
        self.engine.reset()
        embeds = self.embedding[prompt.ids]
        deepstack = np.zeros((self.model["num_deepstack"], *embeds.shape), self.deepstack_dtype)
        for mask, features in ((prompt.audio_mask, prompt.audio_features), (prompt.visual_mask, prompt.visual_features)):
            if mask.any():
                embeds[mask] = features
        if prompt.visual_mask.any():
            deepstack[:, prompt.visual_mask] = prompt.deepstack
        out = self.engine.run({"inputs_embeds": embeds, "position_ids": prompt.positions, "deepstack": deepstack})
        self.next_position = prompt.next_position
        return out["logits"][0], out["accept_hidden"]

    def step(self, token: int) -> np.ndarray:
        """Feed one reply token; returns the logits [V] of the next."""
        position = np.full((3, 1), self.next_position, np.float32)
        self.next_position += 1
        out = self.engine.run(
            {"inputs_embeds": self.embedding[[token]], "position_ids": position, "deepstack": self.text_deepstack}
        )
        return out["logits"][0]

    @property
    def is_full(self) -> bool:
        """No row is left for another reply token."""
        return self.engine.length >= self.capacity
