"""Drawing one id from logits, in the order of transformers' LogitsProcessors: repetition penalty, suppression,
temperature, top-k, top-p."""

import numpy as np

from omni_ros.errors import EngineError

BLOCK = 256  # ids that `largest` looks at together


class Sampler:
    """Keeps what a sequence needs between steps: its random stream and which ids it has produced."""

    def __init__(
        self,
        vocab_size: int,
        temperature: float,
        top_k: int,
        top_p: float,
        rng: np.random.Generator,
        repetition_penalty: float = 1.0,
        suppressed: np.ndarray | None = None,
    ):
        self.temperature, self.top_k, self.top_p, self.rng = temperature, top_k or vocab_size, top_p, rng
        self.penalty, self.suppressed = repetition_penalty, suppressed
        self.seen = np.zeros(vocab_size, bool) if repetition_penalty != 1.0 else None

    def __call__(self, logits: np.ndarray) -> int:
        """logits float32 [V] -> id. Greedy when temperature is 0. Raises EngineError when some of them are not numbers."""
        logits = logits.astype(np.float32)
        if self.seen is not None:
            penalized = np.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = np.where(self.seen, penalized, logits)
        if self.suppressed is not None:
            logits[self.suppressed] = -np.inf
        choice = int(logits.argmax())  # a NaN, if there is one
        if not np.isfinite(logits[choice]):
            raise EngineError(f"{logits[choice]} among the logits: an engine's weights are damaged, or its dtype is too small")
        if self.temperature:
            choice = self._draw(logits)
        if self.seen is not None:
            self.seen[choice] = True
        return choice

    def _draw(self, logits: np.ndarray) -> int:
        ids = largest(logits, self.top_k)
        scaled = logits[ids] / np.float32(self.temperature)
        probability = np.exp(scaled - scaled[0])
        probability /= probability.sum()
        if self.top_p < 1:
            better = np.cumsum(probability) - probability  # mass of the ids ahead of each one
            probability = np.where(better < max(self.top_p, 1e-9), probability, 0)
        cumulative = np.cumsum(probability)
        # in float64: rounded to float32, a draw just below 1 times the sum can be the sum itself, which no id covers
        return int(ids[np.searchsorted(cumulative, self.rng.random() * float(cumulative[-1]), side="right")])


def largest(logits: np.ndarray, k: int) -> np.ndarray:
    """The ids of the k largest of logits [V], best first. A vocabulary is long: most of it is dropped by looking at blocks."""
    ids: np.ndarray = np.arange(len(logits))
    if k < len(logits):
        best = np.maximum.reduceat(logits, ids[::BLOCK])
        if k < len(best):  # k blocks reach this bound, so at least k logits do, the k largest among them
            ids = np.flatnonzero(logits >= np.partition(best, -k)[-k])
        ids = np.sort(ids[np.argpartition(logits[ids], -k)[-k:]])
    return ids[np.argsort(-logits[ids], kind="stable")]
