"""Thinker: prompt rows in, reply tokens out, one per step."""

import numpy as np

from omni_ros.engines.config import ThinkerConfig
from omni_ros.engines.engine import Engine, State
from omni_ros.engines.sidecar import Embedding
from omni_ros.pipeline.prompt import Prompt


class Thinker:
    """Follows Qwen3OmniMoeThinkerForConditionalGeneration with batch 1. What it has read is in the state."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.config: ThinkerConfig = engine.config.model
        self.embedding = Embedding(engine.directory / "embedding.safetensors")
        self.capacity: int = engine.config.limits.capacity
        self.deepstack_dtype = next(i.dtype for i in engine.config.inputs if i.name == "deepstack")
        self.text_deepstack = np.zeros((self.config.num_deepstack, 1, self.config.hidden_size), self.deepstack_dtype)

    def read(self, state: State, prompt: Prompt, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The next rows of a prompt whose media are encoded; `state` holds those before `rows`.

        Returns the logits [V] after the last row, and accept_hidden [n, H] of all of them for the Talker's media rows.
        """
        embeds = self.embedding[prompt.ids[rows]]
        deepstack = np.zeros((self.config.num_deepstack, *embeds.shape), self.deepstack_dtype)
        for first, piece in prompt.pieces:
            start, stop = max(first, rows.start), min(first + piece.tokens, rows.stop)
            if start < stop:
                here, there = slice(start - rows.start, stop - rows.start), slice(start - first, stop - first)
                embeds[here] = piece.features[there]
                if piece.deepstack.size:
                    deepstack[:, here] = piece.deepstack[:, there]
        out = self.engine.run({"inputs_embeds": embeds, "position_ids": prompt.positions[:, rows], "deepstack": deepstack}, state)
        return out["logits"][0], out["accept_hidden"]

    def step(self, state: State, token: int, position: float) -> np.ndarray:
        """Feed one reply token; returns the logits [V] of the next."""
        out = self.engine.run(
            {
                "inputs_embeds": self.embedding[[token]],
                "position_ids": np.full((3, 1), position, np.float32),
                "deepstack": self.text_deepstack,
            },
            state,
        )
        return out["logits"][0]
