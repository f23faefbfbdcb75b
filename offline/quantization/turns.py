"""Calibration samples as turns: the rows that each model is fed, several turns side by side.

Turns of a batch are filled up at their end, so that a row attends to what it would attend to alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from omni_ros.pipeline.positions import mrope_positions

BATCH_ROWS = 32_768  # filled-up rows of prompts that are read together; 30B-A3B: 3.2 GB of keys and values, 4 GB of activations


@dataclass
class Turn:
    """What the models make of a sample."""

    number: int  # of the sample
    inputs: dict[str, np.ndarray]  # as Prompts gives them
    reply: list[int] = field(default_factory=list)  # the Thinker's tokens, less the last, which is never fed
    states: torch.Tensor | None = None  # of the media rows, at the layer where the Talker takes them

    @property
    def ids(self) -> np.ndarray:  # int64 [S]
        return self.inputs["input_ids"][0]

    def positions(self, ids: np.ndarray, thinker: dict, per_second: float) -> tuple[np.ndarray, float]:
        """Of `ids`, which are this turn's or a part of them; `thinker` is the config's section."""
        grids = list(self.inputs.get("image_grid_thw", ()))
        merge = thinker["vision_config"]["spatial_merge_size"]
        return mrope_positions(ids, thinker["image_token_id"], thinker["video_token_id"], grids, [], [], merge, per_second)


def batches(turns: Sequence[Turn], rows: int) -> list[list[Turn]]:
    """Turns of about the same length together, `rows` at most with what fills them up; a longer turn is alone."""
    made: list[list[Turn]] = []
    for turn in sorted(turns, key=lambda turn: len(turn.ids)):
        if not made or (len(made[-1]) + 1) * len(turn.ids) > rows:
            made.append([])
        made[-1].append(turn)
    return made


class Rows:
    """Prompts of different lengths as one tensor, and then one row more for each of them at every step.

    embeds [B, S, H], positions [3, B, S], valid [B, S]. Keys of rows that fill up stay masked for ever.
    """

    def __init__(self, embeds: list[torch.Tensor], positions: list[np.ndarray]):
        device = embeds[0].device
        self.lengths = torch.tensor([len(e) for e in embeds], device=device)
        self.embeds = torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)
        turns, longest = self.embeds.shape[:2]
        self.positions = torch.zeros(3, turns, longest, device=device)
        for i, p in enumerate(positions):
            self.positions[:, i, : p.shape[1]] = torch.from_numpy(p)
        self.valid = torch.arange(longest, device=device) < self.lengths[:, None]
        self.known = self.valid  # bool [B, keys in the cache]

    def prompt_mask(self) -> torch.Tensor:
        """bool [B, 1, S, S]; a row that fills up looks at what is before it, so that no row looks at nothing."""
        longest = self.valid.shape[1]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=self.valid.device).tril()
        return causal[None, None].expand(len(self.valid), -1, -1, -1)

    def step_mask(self, active: torch.Tensor) -> torch.Tensor:
        """For one row more of each turn, of those that are not `active` a useless one: bool [B, 1, 1, keys]."""
        self.known = torch.cat([self.known, active[:, None]], 1)
        mask = self.known.clone()
        mask[:, -1] = True
        return mask[:, None, None]

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, S, H] -> the last real row of each turn [B, H]."""
        return hidden[torch.arange(len(hidden), device=hidden.device), self.lengths.to(hidden.device) - 1]


def user_rows(ids: np.ndarray, config: dict) -> np.ndarray:
    """bool [S]: rows of user segments, which the Talker sees."""
    starts = np.flatnonzero(ids == config["im_start_token_id"])
    role = np.full(len(ids), -1)
    for start in starts.tolist():
        role[start:] = ids[min(start + 1, len(ids) - 1)]
    return role == config["user_token_id"]


def assistant_start(ids: np.ndarray, config: dict) -> int:
    """Row of the last `<|im_start|>assistant`."""
    starts = np.flatnonzero(ids[:-1] == config["im_start_token_id"])
    roles = ids[starts + 1]
    return int(starts[roles == config["assistant_token_id"]][-1])
