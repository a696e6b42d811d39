"""Drills say values twice, and none that is kept out of training."""

from __future__ import annotations

import re

from leveret.tasks.shell.drills import DrillOptions, drills


def parts(line: str) -> list[str]:
    return sorted(re.findall(r"[A-Za-z0-9]+", line))


def test_both_lines_hold_the_same_values() -> None:
    for text in drills(DrillOptions(count=200)):
        first, second = text.split("\n")
        assert set(parts(first)) == set(parts(second)) - ({"s"} - set(parts(first)))


def test_drills_follow_from_the_seed() -> None:
    assert list(drills(DrillOptions(count=20))) == list(drills(DrillOptions(count=20)))
    assert list(drills(DrillOptions(count=20))) != list(drills(DrillOptions(count=20, seed=1)))
