"""Each way of choosing a token against transformers' own, or against its definition written down again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from leveret.inference.config import SamplingConfig
from leveret.inference.sampling import Chooser, adjusted, candidates, next_tokens, probable

VOCABULARY = 40
HISTORY = [3, 5, 5, 0, 39, 5, 7, 3]


def some_logits(seed: int, size: int = VOCABULARY) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def settings(**keys: Any) -> SamplingConfig:
    return SamplingConfig.model_validate(keys)


def chooser(config: SamplingConfig, history: list[int], seed: int = 0, size: int = VOCABULARY) -> Chooser:
    return Chooser(config.model_copy(update={"seed": seed}), history, size)


def penalise(logits_V: Tensor, history: list[int], config: SamplingConfig) -> Tensor:
    return adjusted(logits_V[None], [chooser(config, history)])[0]


def truncate(logits_BV: Tensor, configs: list[SamplingConfig]) -> Tensor:
    """What is kept, each in its place."""
    best, ids = candidates(logits_BV, configs)
    return probable(torch.full_like(logits_BV, -torch.inf).scatter(1, ids, best), configs)


def next_token(logits_V: Tensor, history: list[int], config: SamplingConfig, seed: int = 0) -> int:
    return next_tokens(logits_V[None], [chooser(config, history, seed, len(logits_V))])[0]


def draws(logits_V: Tensor, history: list[int], config: SamplingConfig, count: int) -> list[int]:
    """So many tokens by one row's random numbers, none of which becomes part of its history."""
    row = chooser(config, history, size=len(logits_V))
    return [next_tokens(logits_V[None], [row])[0] for _ in range(count)]


def theirs(processor: Callable[..., Tensor], logits_V: Tensor, history: list[int]) -> Tensor:
    return processor(torch.tensor([history]), logits_V[None].clone())[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "processor"),
    [
        ({"top_k": 1}, TopKLogitsWarper(1)),
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_k": 1000}, TopKLogitsWarper(1000)),
        ({"top_p": 0.05}, TopPLogitsWarper(0.05)),
        ({"top_p": 0.5}, TopPLogitsWarper(0.5)),
        ({"top_p": 0.95}, TopPLogitsWarper(0.95)),
        ({"min_p": 0.0}, MinPLogitsWarper(0.0)),
        ({"min_p": 0.02}, MinPLogitsWarper(0.02)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
    ],
    ids=lambda value: ",".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_what_is_left_out(ours: dict[str, Any], processor: Callable[..., Tensor], seed: int) -> None:
    logits = some_logits(seed)
    found = truncate(logits[None], [settings(**ours)])[0]
    assert torch.equal(found, theirs(processor, logits, HISTORY))
    assert found.argmax() == logits.argmax()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [1.0, 1.1, 1.9, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float, seed: int) -> None:
    logits = some_logits(seed)
    history = [*HISTORY, int(logits.argmax()), int(logits.argmin())]  # of either sign
    found = penalise(logits, history, settings(repetition_penalty=penalty))
    assert torch.allclose(found, theirs(RepetitionPenaltyLogitsProcessor(penalty), logits, history))


@pytest.mark.parametrize("window", [None, 1, 4, 64])
@pytest.mark.parametrize("form", ["once", "per-count"])
def test_repetition_penalty_token_by_token(form: str, window: int | None) -> None:
    logits = some_logits(3)
    found = penalise(logits, HISTORY, settings(repetition_penalty=1.1, repetition_form=form, repetition_window=window))
    recent = HISTORY if window is None else HISTORY[-window:]
    for token in range(VOCABULARY):
        count = recent.count(token)
        factor = 1.1 ** (count if form == "per-count" else min(count, 1))
        before = float(logits[token])
        expected = before / factor if before > 0 else before * factor
        assert float(found[token]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_presence_and_frequency_are_openais_formula(seed: int) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, with c of the answer alone; then the bias."""
    logits = some_logits(seed)
    config = settings(presence_penalty=0.7, frequency_penalty=-0.3, logit_bias={4: 2.5, 39: -100.0, 7: 0.5})
    row = chooser(config, [1, 2, 3])
    for token in HISTORY:
        row.add(token)
    found = adjusted(logits[None], [row])[0]
    for token in range(VOCABULARY):
        count = HISTORY.count(token)
        expected = float(logits[token]) - count * -0.3 - (count > 0) * 0.7 + config.logit_bias.get(token, 0.0)
        assert float(found[token]) == pytest.approx(expected, abs=1e-5)


def test_bias_forces_and_forbids() -> None:
    logits = some_logits(1)
    assert next_token(logits, [], settings(logit_bias={17: 100})) == 17
    best = int(logits.argmax())
    assert next_token(logits, [], settings(logit_bias={best: -100})) != best
    assert next_token(logits, [], settings(logit_bias={10**6: 100, -1: 100})) == best  # no such tokens


def test_rows_choose_each_in_its_own_way() -> None:
    """Together as alone, whatever the others want."""
    ways = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
        {"presence_penalty": 1.5, "logit_bias": {3: 1.0}},
        {"repetition_penalty": 1.5, "repetition_form": "per-count", "repetition_window": 3},
        {"temperature": 1.0, "top_k": 2000},
    ]

    def rows() -> list[Chooser]:
        return [chooser(settings(**way), HISTORY[:n], seed=n) for n, way in enumerate(ways)]

    together, alone = rows(), rows()
    for step in range(20):
        logits = torch.stack([some_logits(100 * step + n) for n in range(len(ways))])
        tokens = next_tokens(logits, together)
        assert tokens == [next_tokens(logits[n : n + 1], [row])[0] for n, row in enumerate(alone)]
        for row, other, token in zip(together, alone, tokens, strict=True):
            row.add(token)
            other.add(token)


@pytest.mark.parametrize("peak", [0.001, 3.0])
def test_top_p_among_a_large_vocabulary(peak: float) -> None:
    """Whether a thousand candidates are enough for it or not."""
    logits = some_logits(0, 5000) * peak
    found = truncate(logits[None], [settings(top_p=0.9)])[0]
    expected = theirs(TopPLogitsWarper(0.9), logits, HISTORY)
    assert abs(int(found.isfinite().sum()) - int(expected.isfinite().sum())) <= 1  # sums are rounded in another order
    assert float(found.softmax(-1).sub(expected.softmax(-1)).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "keys",
    [
        {"temperature": 1e-300},
        {"temperature": 1.0, "top_p": 1e-300},
        {"temperature": 1.0, "min_p": 1.0, "top_k": 1},
        {"temperature": 1000.0, "top_k": 1},
    ],
)
def test_extremes_leave_the_best(keys: dict[str, Any]) -> None:
    for seed in range(5):
        logits = some_logits(seed)
        assert next_token(logits, HISTORY, settings(**keys)) == int(logits.argmax())


def test_a_model_that_gives_no_numbers_still_gives_tokens() -> None:
    logits = torch.full((VOCABULARY,), torch.nan)
    for keys in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 3}):
        assert 0 <= next_token(logits, HISTORY, settings(**keys)) < VOCABULARY


def test_no_history_no_penalty() -> None:
    assert torch.equal(penalise(some_logits(0), [], settings(repetition_penalty=2.0)), some_logits(0))


@pytest.mark.parametrize("seed", range(5))
def test_all_together_are_in_the_order_of_transformers(seed: int) -> None:
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(12),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    config = settings(repetition_penalty=1.3, temperature=0.7, top_k=12, top_p=0.9, min_p=0.05)
    expected = theirs(chain, some_logits(seed), HISTORY).softmax(-1)
    allowed = set(expected.nonzero().flatten().tolist())
    drawn = draws(some_logits(seed), HISTORY, config, 400)
    assert set(drawn) <= allowed
    shares = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / len(drawn)
    assert (shares - expected).abs().max() < 0.1  # four standard deviations


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_shapes_the_draws(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = draws(logits, [], settings(temperature=temperature), 4000)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    weights = torch.tensor([2.718281828 ** (value / temperature) for value in logits.tolist()])
    assert (shares - weights / weights.sum()).abs().max() < 0.03


def test_temperature_zero_is_greedy() -> None:
    for seed in range(10):
        logits = some_logits(seed)
        assert next_token(logits, HISTORY, settings()) == int(logits.argmax())
    # The penalty counts even so: the best token has been said already.
    logits = torch.tensor([0.0, 5.0, 4.9])
    assert next_token(logits, [1], settings()) == 1
    assert next_token(logits, [1], settings(repetition_penalty=1.1)) == 2
    assert next_token(logits, [1, 2, 2], settings(repetition_penalty=1.1)) == 1
    for window, chosen in ((None, 2), (3, 2), (2, 1), (1, 1)):
        keys = {"repetition_penalty": 1.1, "repetition_form": "per-count", "repetition_window": window}
        assert next_token(logits, [1, 1, 1, 2], settings(**keys)) == chosen


def test_the_same_seed_draws_the_same() -> None:
    def draw(seed: int) -> list[int]:
        row = chooser(settings(temperature=1.5), HISTORY, seed)
        return [next_tokens(some_logits(n)[None], [row])[0] for n in range(30)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_are_left_alone(dtype: torch.dtype) -> None:
    logits = some_logits(2).to(dtype)
    before = logits.clone()
    config = settings(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    assert 0 <= next_token(logits, HISTORY, config) < VOCABULARY
    assert torch.equal(logits, before)


def test_of_equal_logits_as_many_stay_as_are_asked_for() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert truncate(logits, [settings(top_k=2)]).isfinite().sum() == 2
    assert truncate(logits, [settings(top_p=0.001)]).isfinite().sum() == 1
    assert truncate(logits, [settings(min_p=1.0)]).isfinite().tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    "keys",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e300},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {1: 1e30}},
        {"length_penalty": 1000},
        {"logprobs": 21},
        {"stop": [""]},
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        settings(**keys)
