"""Random rows for a decoder engine, and how like two engines answer them; a random question for all engines."""

import numpy as np

from omni_ros.engines.engine import Engine


def random_rows(engine: Engine, rows: int, past: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of so many rows, after `past` others; features of a picture for some of them."""
    hidden, levels = engine.config.model.hidden_size, getattr(engine.config.model, "num_deepstack", 0)
    index = past + np.arange(rows, dtype=np.float32)
    inputs = {
        "inputs_embeds": random.standard_normal((rows, hidden)).astype(np.float16).astype(np.float32),
        "position_ids": np.stack([index + 0.5, index // 2, 3 * index]),
    }
    if levels:
        inputs["deepstack"] = np.zeros((levels, rows, hidden), np.float32)
        if rows > 1:
            inputs["deepstack"][:, rows // 3 : rows // 2] = random.standard_normal((levels, rows // 2 - rows // 3, hidden))
    return inputs


def likeness(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> list[float]:
    """The cosine of each row of each output."""
    assert expected.keys() == got.keys()
    return [cosine(*rows) for name in expected for rows in zip(expected[name], got[name], strict=True)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def question_with_noise() -> list[dict]:
    """A picture, half a second of sound and a few words."""
    random = np.random.default_rng(6)
    picture = random.integers(0, 256, (64, 96, 3), np.uint8)
    sound = random.standard_normal(8000).astype(np.float32) * np.float32(0.1)
    return [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture},
                {"type": "audio", "audio": sound},
                {"type": "text", "text": "one two three"},
            ],
        }
    ]
