"""Repetition, loops and ends of generated text, on texts whose figures are known."""

import pytest

from leveret.evaluation.generation import distinct, faults, loops, repeated
from leveret.inference.engine import Completion


def test_repeated_and_different_n_grams() -> None:
    assert repeated([1, 2, 1, 2, 1], 2) == pytest.approx(1 - 2 / 4)  # 12 21 12 21
    assert repeated([1, 2, 3], 2) == 0
    assert repeated([1], 2) is None
    assert distinct([[1, 2, 1], [1, 2]], 2) == pytest.approx(2 / 3)  # 12 21, 12
    assert distinct([[1]], 2) is None


@pytest.mark.parametrize(
    ("tokens", "circle"),
    [
        ([9, 8, 7] + [1] * 12, True),
        ([9, 8, 7] + [1, 2, 3] * 4, True),
        ([9] + [1, 2, 3, 4, 5] * 3, True),
        ([9] + [1, 2, 3, 4, 5] * 2, False),
        ([9, 1, 1, 1], False),  # three full stops
        ([1, 2, 3] * 4 + [9], False),  # it found its way out
        ([], False),
    ],
)
def test_a_circle_is_the_same_again_and_again_at_the_end(tokens: list[int], circle: bool) -> None:
    assert loops(tokens) is circle


def test_figures_of_answers() -> None:
    found = faults(
        [
            Completion("a b", [1, 2], "stop"),
            Completion("", [], "stop"),
            Completion("x" * 12, [3] * 12, "length"),
            Completion("a c", [1, 4], "length"),
        ]
    )
    assert (found["answers"], found["tokens"], found["ended"]) == (4, 4.0, 0.5)
    assert (found["empty"], found["loops"]) == (0.25, 0.25)
    assert found["rep_2"] == pytest.approx((0 + 10 / 11 + 0) / 3)
    assert found["distinct_1"] == pytest.approx(4 / 16)
    assert faults([])["rep_2"] is None
