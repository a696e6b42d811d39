"""The learning rate warms up, and ends at min_lr exactly when training ends."""

import math

import pytest

from leveret.training.config import ScheduleConfig, TrainingConfig
from leveret.training.schedule import learning_rate

PEAK = 3e-4


def rates(total: int, **settings: object) -> list[float]:
    config = ScheduleConfig.model_validate(settings)
    return [learning_rate(config, PEAK, step, total) for step in range(total)]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("settings", "warmup"), [({"warmup_steps": 20}, 20), ({"warmup_fraction": 0.1}, 10)])
def test_warmup_is_linear_to_the_peak(kind: str, settings: dict[str, object], warmup: int) -> None:
    found = rates(100, kind=kind, **settings)
    assert found[:warmup] == pytest.approx([PEAK * (step + 1) / warmup for step in range(warmup)])
    assert found[warmup - 1] == max(found) == PEAK


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 13])
@pytest.mark.parametrize("total", [14, 100, 997])
def test_the_last_step_is_at_min_lr(kind: str, warmup: int, total: int) -> None:
    for min_lr in (0.0, 3e-5):
        found = rates(total, kind=kind, warmup_steps=warmup, min_lr=min_lr)
        assert found[-1] == min_lr
        assert all(rate > min_lr for rate in found[warmup:-1]), "not before the last step"
        after = found[warmup:]
        assert after == sorted(after, reverse=True)


def test_cosine_and_linear_half_way() -> None:
    """Step 59 is half of the way from the peak (step 19) to the end (step 99)."""
    for kind in ("cosine", "linear"):
        assert rates(100, kind=kind, warmup_steps=20, min_lr=1e-4)[59] == pytest.approx((PEAK + 1e-4) / 2)
    assert rates(100, kind="linear", warmup_steps=20)[39] == pytest.approx(PEAK * 3 / 4)
    assert rates(100, kind="cosine", warmup_steps=20)[39] == pytest.approx(PEAK * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_is_level_until_its_decay() -> None:
    found = rates(100, kind="wsd", warmup_steps=10, decay_fraction=0.3)
    assert found[9:70] == [PEAK] * 61
    assert found[70:] == pytest.approx([PEAK * (1 - (n + 1) / 30) for n in range(30)], abs=1e-12)
    # A decay longer than what the warm-up leaves begins after it.
    assert rates(10, kind="wsd", warmup_steps=4, decay_fraction=0.9)[3:] == pytest.approx(
        [PEAK * (1 - n / 6) for n in range(7)], abs=1e-12
    )


def test_a_warm_up_takes_at_most_half_of_the_steps() -> None:
    found = rates(10, kind="linear", warmup_steps=700)
    assert found[4] == PEAK
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_constant_stays() -> None:
    assert rates(50, kind="constant", warmup_steps=5)[4:] == [PEAK] * 46


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_one_step_only(kind: str) -> None:
    assert rates(1, kind=kind) == [PEAK if kind == "constant" else 0.0]


def test_length_of_training() -> None:
    def steps(**settings: float) -> int:
        return TrainingConfig.model_validate({"batch_size": 8} | settings).total_steps(windows=100, sequence_length=64)

    assert steps(steps=17) == 17
    assert steps(tokens=8 * 64 * 5) == 5
    assert steps(tokens=8 * 64 * 5 + 1) == 6
    assert steps(epochs=2) == 25
    assert steps(epochs=1) == 13
    assert steps(epochs=0.001) == 1
    with pytest.raises(ValueError, match="exactly one of steps, tokens and epochs"):
        steps()
    with pytest.raises(ValueError, match="exactly one of steps, tokens and epochs"):
        steps(steps=3, epochs=1)
