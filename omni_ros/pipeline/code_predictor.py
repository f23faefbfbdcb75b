"""CodePredictor: codes 1..15 of a codec frame from its code 0, in one engine call."""

import numpy as np

from omni_ros.engines.config import CodePredictorConfig
from omni_ros.engines.engine import Engine


class CodePredictor:
    """Follows Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration; the graph samples with the noise it is given."""

    def __init__(self, engine: Engine):
        self.engine = engine
        config: CodePredictorConfig = engine.config.model
        self.noise_shape = (config.num_code_groups - 1, config.noise_width)
        self.hidden_size = next(i.shape[1] for i in engine.config.inputs if i.name == "last_hidden")
        self.greedy_noise = np.zeros(self.noise_shape, np.float32)

    def __call__(
        self, last_hidden: np.ndarray, code0_embed: np.ndarray, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """last_hidden, code0_embed [1, H] -> codes int64 [15] and the sum of all 16 code embeddings [1, H].

        `rng` None is greedy; otherwise Gumbel noise makes the graph's argmax an exact draw.
        """
        noise = self.greedy_noise if rng is None else rng.gumbel(size=self.noise_shape).astype(np.float32)
        out = self.engine.run({"last_hidden": last_hidden, "code0_embed": code0_embed, "noise": noise})
        return out["codes"], out["embed_sum"]
