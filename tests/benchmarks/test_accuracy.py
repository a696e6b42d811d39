"""The benchmarks of what models know: how they divide and judge, and that their quick forms go the whole way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shell_accuracy import Pair, command_name, divide, nearest, scored, template_of

from leveret.data.leaks import normalise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def quick_form(name: str, work: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--device", "cpu", "--work", str(work)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LEVERET_CACHE": str(work / "cache")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    return result


@pytest.mark.parametrize(
    ("command", "name", "template"),
    [
        ("ls -la /srv", "ls", "ls -la _"),
        ("sudo find . -name '*.py' -mtime +3 | xargs rm -f", "find", "sudo find _ -name _ -mtime _ | xargs _ -f"),
        ("FOO=1 tar --file=a.tar -x b c", "tar", "FOO=_ tar --file=_ -x _"),
        ("cat a > b; echo 'unfinished", "cat", "cat _ > _"),
        ("", "", ""),
    ],
)
def test_a_template_keeps_names_flags_and_operators(command: str, name: str, template: str) -> None:
    assert command_name(command) == name
    assert template_of(command) == template


PAIRS = [
    Pair(f"{verb} the {thing} in {place}{end}", f"{tool} -{flag} {place}/{thing}", source)
    for verb, tool, flag in (("list", "ls", "l"), ("show", "cat", "n"), ("drop", "rm", "r"), ("count", "wc", "c"))
    for thing in ("files", "logs", "mails")
    for place in ("/srv", "/tmp", "/opt")
    for end, source in (("", "nl2bash"), (".", "tldr:common"), (" please", "other"))
]
PAIRS += [Pair(pair.instruction, f"{pair.command} -z", pair.source) for pair in PAIRS]  # one question, two answers


def test_held_out_sets_share_nothing_with_training() -> None:
    train, sets = divide(PAIRS, 3)
    assert [len(some) for some in sets.values()] == [3, 1 + 2]
    held = [pair for some in sets.values() for pair in some]
    assert {pair.source for pair in held} <= {"nl2bash", "tldr:common"}
    asked = {normalise(pair.instruction) for pair in held}
    assert not asked & {normalise(pair.instruction) for pair in train}
    assert not {template_of(p.command) for p in sets["template"]} & {template_of(p.command) for p in train}
    assert divide(PAIRS[::-1], 3)[1] == sets, "the order of the pairs decides nothing"


def test_the_nearest_neighbour_is_judged_as_the_models_are() -> None:
    train = [Pair("list the files", "ls", "nl2bash"), Pair("show the date", "date", "tldr:common")]
    asked = [Pair("Show me today's date!", "date", "tldr:common"), Pair("list files by size", "ls -S", "nl2bash")]
    answers = nearest(train, asked)
    assert answers == ["date", "ls"]
    figures = scored(asked, answers)
    assert (figures["exact_match"], figures["command_match"]) == (0.5, 1.0)
    assert figures["nl2bash"] == {"examples": 1, "exact_match": 0, "command_match": 1}


@pytest.mark.long
def test_arithmetic_is_measured_by_operation_and_digits(tmp_path: Path) -> None:
    result = quick_form("arithmetic_accuracy", tmp_path)
    facts, *cells = result["rows"]
    assert {(row["operation"], row["digits"]) for row in cells} == {(s, n) for s in "+-" for n in range(1, 5)} | {
        ("*", 1), ("*", 2),
    }  # fmt: skip
    assert all(0 <= row["correct"] <= row["examples"] <= 20 for row in cells)
    assert facts["parameters"] < 100_000
    assert set(result["goals"]) == {"one_to_three_digits", "four_digits", "two_digit_products"}


needs_data = pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")


@needs_data
@pytest.mark.long
def test_shell_contestants_are_trained_and_compared(tmp_path: Path) -> None:
    result = quick_form("shell_accuracy", tmp_path)
    rows = {(row["held_out_by"], row["contestant"]): row for row in result["rows"]}
    assert {name for _, name in rows} == {"nearest neighbour", "tinyllm", "leveret-shell"}
    assert {held for held, _ in rows} == {"pair", "template"}
    assert result["goals"]["exact_match"]["value"] == rows["pair", "leveret-shell"]["exact_match"]


@needs_data
@pytest.mark.long
def test_answers_are_counted_that_end(tmp_path: Path) -> None:
    result = quick_form("stopping", tmp_path)
    assert all(row["prompts"] == 8 and 0 <= row["ended"] <= 1 for row in result["rows"])
    assert set(result["goals"]) == {"ended", "length_ratio"}
