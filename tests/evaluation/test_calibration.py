"""Calibration against values worked out by hand."""

import math
from pathlib import Path

import pytest

from leveret.evaluation.calibration import belief, calibration, calibration_of, plot_reliability


def test_belief_is_the_share_of_the_choices_probability() -> None:
    assert belief([math.log(3), math.log(1)]) == pytest.approx(0.75)
    assert belief([-1000.0, -1000.0, -1000.0 - math.log(2)]) == pytest.approx(0.4)


def test_the_error_of_equal_bins() -> None:
    """Two bins: of beliefs .5 and .6 one right, |.5 - .55| = .05; of .8 and .9 none, .85; on average .45."""
    found = calibration([0.9, 0.5, 0.8, 0.6], [False, True, False, False], bins=2)
    assert found["ece"] == pytest.approx(0.45)
    assert [part["n"] for part in found["bins"]] == [2, 2]
    assert [part["accuracy"] for part in found["bins"]] == [0.5, 0.0]
    assert found["bins"][1]["belief"] == pytest.approx(0.85)
    assert (found["belief"], found["accuracy"]) == (pytest.approx(0.7), 0.25)


def test_one_who_is_right_as_often_as_believed_has_no_error() -> None:
    beliefs = [0.25] * 4 + [0.75] * 4
    right = [True, False, False, False, True, True, True, False]
    assert calibration(beliefs, right, bins=2)["ece"] == 0
    assert len(calibration(beliefs[:3], right[:3])["bins"]) == 3  # no empty ones


def test_only_questions_with_choices_count(tmp_path: Path) -> None:
    rows = [
        {"loglikelihoods": [math.log(3), 0.0], "correct": True},
        {"loglikelihoods": [-4.0], "correct": False},
        {"answer": "9", "correct": True},
    ]
    found = calibration_of(rows)
    assert found is not None
    assert (found["n"], found["ece"]) == (1, pytest.approx(0.25))
    assert calibration_of(rows[1:]) is None
    plot_reliability({"a model": found, "another": found}, tmp_path / "new" / "reliability.png")
    assert (tmp_path / "new" / "reliability.png").read_bytes().startswith(b"\x89PNG")
