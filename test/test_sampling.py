"""Drawn ids follow the distribution that transformers' logits processors define."""

import numpy as np
import oracle
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omni_ros.engines.open import open_engine
from omni_ros.errors import EngineError
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.sampling import Sampler, largest


def exact(
    logits: np.ndarray, history: list[int], penalty: float, suppressed: list[int], temperature: float, top_k: int, top_p: float
) -> np.ndarray:
    """The probabilities from which transformers' generate() would draw."""
    chain = LogitsProcessorList()
    if penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(penalty))
    if suppressed:
        chain.append(SuppressTokensLogitsProcessor(suppressed))
    chain += [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    scores = chain(torch.tensor([history], dtype=torch.long), torch.from_numpy(logits)[None].clone())
    return scores.softmax(-1)[0].numpy()


def assert_drawn_from(counts: np.ndarray, probability: np.ndarray) -> None:
    """No impossible id was drawn, and a chi-square statistic within six standard deviations of its mean."""
    assert not counts[probability == 0].any()
    expected = counts.sum() * probability
    likely = expected >= 5
    statistic = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert statistic < freedom + 6 * np.sqrt(2 * freedom) + 1, (statistic, freedom)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.8},
        {"penalty": 1.4, "history": [3, 17, 17, 40]},
        {"suppressed": list(range(30, 50)), "top_k": 10},
        {"penalty": 1.1, "history": [1, 2], "suppressed": [5, 6], "temperature": 0.9, "top_k": 10, "top_p": 0.95},
    ],
)
def test_sampler_follows_transformers(settings):
    options = {"penalty": 1.0, "history": [], "suppressed": [], "temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    history, suppressed = options.pop("history"), options.pop("suppressed")
    logits = (2 * np.random.default_rng(0).standard_normal(60)).astype(np.float32)
    probability = exact(
        logits, history, options["penalty"], suppressed, options["temperature"], options["top_k"], options["top_p"]
    )
    rng, counts = np.random.default_rng(1), np.zeros(60)
    for _ in range(8000):
        sampler = Sampler(
            60,
            options["temperature"],
            options["top_k"],
            options["top_p"],
            rng,
            options["penalty"],
            np.array(suppressed, np.int64) if suppressed else None,
        )
        if history:
            sampler.seen[history] = True
        counts[sampler(logits)] += 1
    assert_drawn_from(counts, probability)


def test_penalty_follows_the_samplers_own_draws():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    sampler = Sampler(3, 0, 0, 1.0, np.random.default_rng(0), 1.5)
    assert [sampler(logits), sampler(logits)] == [0, 1]  # 2.0 / 1.5 is below 1.9


def test_greedy_and_seeds():
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    assert Sampler(50, 0, 5, 0.5, np.random.default_rng(0))(logits) == logits.argmax()
    draws = [[s(logits) for _ in range(30)] for s in (Sampler(50, 1.0, 0, 1.0, np.random.default_rng(k)) for k in (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


def test_code_predictor_draws_from_the_models_distribution(name, checkpoints, engine_dirs):
    """Code 1 follows top-k 50 / top-p 0.8 of head 0; code 2 follows head 1 given code 1."""
    predictor = CodePredictor(open_engine(engine_dirs[name] / "code_predictor", threads=1))
    model = oracle.load(checkpoints[name]).model.talker
    hidden = torch.randn(1, 1, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        code0 = model.get_input_embeddings()(torch.tensor([[7]]))
        logits1 = model.code_predictor(inputs_embeds=torch.cat([hidden, code0], 1), use_cache=False).logits[0, -1]
    rng = np.random.default_rng(0)
    drawn = np.array([predictor(hidden[0].numpy(), code0[0].numpy(), rng)[0][:2] for _ in range(2500)])
    counts = np.bincount(drawn[:, 0], minlength=len(logits1))
    assert_drawn_from(counts, exact(logits1.numpy(), [], 1.0, [], 1.0, min(50, len(logits1)), 0.8))
    first = int(counts.argmax())
    with torch.no_grad():
        embedded = model.code_predictor.model.codec_embedding[0](torch.tensor([[first]]))
        rows = model.code_predictor.model(inputs_embeds=torch.cat([hidden, code0, embedded], 1), use_cache=False)
        logits2 = model.code_predictor.lm_head[1](rows.last_hidden_state[0, -1])
    counts = np.bincount(drawn[drawn[:, 0] == first, 1], minlength=len(logits2))
    assert_drawn_from(counts, exact(logits2.numpy(), [], 1.0, [], 1.0, min(50, len(logits2)), 0.8))


@pytest.mark.parametrize("size", [1, 60, 257, 3072, 50_000])
def test_largest(size):
    """Of few ids and many, the best all over the vocabulary or side by side; of equals the lower id comes first."""
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    for values in (logits, np.sort(logits), np.full(size, -np.inf, np.float32), logits.round()):
        for k in (1, 2, 10, 50, 300, size):
            ids = largest(values, k)
            assert len(set(ids.tolist())) == min(k, size)
            np.testing.assert_array_equal(values[ids], -np.sort(-values)[:k])
            equal = values[ids][1:] == values[ids][:-1]
            assert (ids[:-1] < ids[1:])[equal].all()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(temperature, bad):
    logits = np.zeros(1000, np.float32)
    logits[700 if bad > 0 or np.isnan(bad) else slice(None)] = bad
    with pytest.raises(EngineError, match=f"{bad} among the logits"):
        Sampler(1000, temperature, 50, 1.0, np.random.default_rng(0))(logits)


@pytest.mark.parametrize("size", [3, 50, 152064])
def test_the_largest_draw_is_an_id(size):
    """A generator's largest number below 1, times a sum in float32, can be that sum, which no id covers."""

    class Largest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))  # a Python number, as numpy's: one of numpy's own would make float64 of the sum

    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5)):
        sampler = Sampler(size, 1.0, top_k, top_p, Largest())
        assert 0 <= sampler(logits) < size
