"""Bootstrap intervals against the closed form, and whether they hold the truth as often as they say."""

import math

import numpy as np
import pytest

from leveret.evaluation.bootstrap import compare_answers, outcomes, ratio_interval, resampled_differences


def test_the_spread_is_that_of_the_closed_form() -> None:
    """Of n questions, a share w won and l lost: the difference's variance is (w + l - (w - l)^2) / n."""
    a, b = [True] * 60 + [False] * 140, [False] * 40 + [True] * 40 + [False] * 120
    assert outcomes(a, b) == (40, 140, 20)
    drawn = resampled_differences(a, b)
    assert drawn.mean() == pytest.approx(0.1, abs=2e-3)
    assert drawn.std() == pytest.approx(math.sqrt((0.2 + 0.1 - 0.1**2) / 200), rel=0.03)


def test_an_interval_holds_the_truth_19_times_of_20() -> None:
    rng, held, rounds = np.random.default_rng(1), 0, 300
    for _ in range(rounds):  # of pairs of models of which the one is right in 50%, the other in 40%, not independently
        hard = rng.random(200)
        a, b = hard + 0.2 * rng.standard_normal(200) < 0.5, hard + 0.2 * rng.standard_normal(200) < 0.4
        truth = 0.0984  # the noise takes a little of 0.1 at the border
        low, high = compare_answers({"t": a.tolist()}, {"t": b.tolist()})["tasks"]["t"]["interval_95"]
        held += low <= truth <= high
    assert 0.9 <= held / rounds <= 0.985


def test_two_models_are_compared_task_by_task() -> None:
    a = {"easy": [True] * 90 + [False] * 10, "hard": [True, False] * 20, "same": [True, True]}
    b = {"easy": [True] * 50 + [False] * 50, "hard": [False, True] * 20, "same": [True, True]}
    found = compare_answers(a, b)
    assert found["tasks"]["easy"] | {"interval_95": None} == {
        "n": 100, "wins": 40, "ties": 60, "losses": 0, "difference": 0.4, "interval_95": None,
    }  # fmt: skip
    assert (found["won"], found["tied"], found["lost"]) == (1, 2, 0)
    assert found["clear"] == {"won": 1, "lost": 0}
    assert found["tasks"]["same"]["interval_95"] == [0, 0]
    assert found["mean"]["difference"] == pytest.approx(0.4 / 3)
    low, high = found["mean"]["interval_95"]
    assert low < 0.4 / 3 < high
    turned = compare_answers(b, a)
    assert turned["lost"] == 1
    assert compare_answers(a, b) == found  # nothing else is drawn from
    alone = compare_answers({"hard": a["hard"]}, {"hard": b["hard"]})
    assert alone["tasks"]["hard"] == found["tasks"]["hard"]  # whatever stands beside it


def test_a_ratio_of_sums_over_documents() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(100, 1000, 400)
    bits = sizes * (1.5 + 0.3 * rng.standard_normal(400))
    low, high = ratio_interval(bits, sizes)
    ratio = bits.sum() / sizes.sum()
    # The delta method's standard error.
    error = math.sqrt(((bits - ratio * sizes) ** 2).sum()) / sizes.sum()
    assert low < ratio < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert ratio_interval([30.0], [20]) == [1.5, 1.5]
