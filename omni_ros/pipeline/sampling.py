"""Drawing one id from logits, in the order of transformers' LogitsProcessors: repetition penalty, suppression,
temperature, top-k, top-p."""
import numpy as np


class Sampler:
    """Keeps what a sequence needs between steps: its random stream and which ids it has produced."""

    def __init__(self, vocab_size: int, temperature: float, top_k: int, top_p: float, rng: np.random.Generator,
                 repetition_penalty: float = 1.0, suppressed: np.ndarray | None = None):
        self.temperature, self.top_k, self.top_p, self.rng = temperature, top_k or vocab_size, top_p, rng
        self.penalty, self.suppressed = repetition_penalty, suppressed
        self.seen = np.zeros(vocab_size, bool) if repetition_penalty != 1.0 else None

    def __call__(self, logits: np.ndarray) -> int:
        """logits float32 [V] -> id. Greedy when temperature is 0."""
        logits = logits.astype(np.float32)
        if self.seen is not None:
            penalized = np.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = np.where(self.seen, penalized, logits)
        if self.suppressed is not None:
            logits[self.suppressed] = -np.inf
        choice = int(logits.argmax()) if self.temperature == 0 else self._draw(logits / np.float32(self.temperature))
        if self.seen is not None:
            self.seen[choice] = True
        return choice

    def _draw(self, logits: np.ndarray) -> int:
        k = min(self.top_k, len(logits))
        ids = np.argpartition(logits, -k)[-k:] if k < len(logits) else np.arange(len(logits))
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        probability = np.exp(logits[ids] - logits[ids[0]])
        probability /= probability.sum()
        if self.top_p < 1:
            better = np.cumsum(probability) - probability  # mass of the ids ahead of each one
            probability = np.where(better < max(self.top_p, 1e-9), probability, 0)
        cumulative = np.cumsum(probability)
        return int(ids[np.searchsorted(cumulative, self.rng.random() * cumulative[-1], side="right")])
