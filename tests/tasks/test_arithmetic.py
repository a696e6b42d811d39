import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from pydantic import ValidationError

from leveret.tasks.arithmetic import (
    ArithmeticOptions,
    Problem,
    as_documents,
    as_pairs,
    is_held_out,
    problems,
)


def make(**options: object) -> list[Problem]:
    return list(problems(ArithmeticOptions.model_validate(options)))


def pair_of(problem: Problem) -> frozenset[int]:
    """The two numbers that the hold-out is decided by."""
    a, b = problem.operands
    return frozenset((a // b, b) if problem.operation == "/" else (a, b))


def test_answers_are_right() -> None:
    exact = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: Fraction(a, b),
    }
    found = make(count=5000, max_digits=5)
    for problem in found:
        a, b = problem.operands
        assert exact[problem.operation](a, b) == int(problem.answer) >= 0
        assert str(a) in problem.prompt
        assert str(b) in problem.prompt
    assert len(found) == 5000


def test_prompts_are_unique_and_take_every_form() -> None:
    found = make(count=4000, min_digits=2, max_digits=3)
    assert len({p.prompt for p in found}) == len(found)
    symbolic = [p for p in found if p.prompt.endswith("=")]
    assert len(symbolic) == len(found) // 2
    for p in symbolic:
        assert p.prompt == f"{p.operands[0]} {p.operation} {p.operands[1]} ="
    # Each operation is worded in several ways, whichever the operands.
    wordings = {(p.operation, "".join(c for c in p.prompt if not c.isdigit())) for p in found}
    assert min(Counter(operation for operation, _ in wordings).values()) >= 4


@pytest.mark.parametrize("max_digits", [1, 2, 3])
def test_splits_share_no_unordered_pair(max_digits: int) -> None:
    # All there is up to two digits, a sample of three; each split with an order and forms of its own.
    train = make(max_digits=max_digits, count=30_000, seed=1)
    held_out = make(max_digits=max_digits, count=3_000, seed=2, split="heldout", operations=["/", "*", "-", "+"])
    assert train
    assert held_out
    assert not {pair_of(p) for p in train} & {pair_of(p) for p in held_out}
    # Nor do the operands as written meet, whatever the operation.
    assert not {frozenset(p.operands) for p in train} & {frozenset(p.operands) for p in held_out}


def test_the_side_is_the_same_for_every_order_operation_seed_and_count() -> None:
    assert all(is_held_out(a, b, 0.3) == is_held_out(b, a, 0.3) for a in range(50) for b in range(a))
    every: dict[str, set[frozenset[int]]] = {}
    for operation in "+-*/":
        for seed, count in ((0, 100_000), (5, 40)):
            found = make(operations=[operation], count=count, seed=seed, max_digits=2, split="heldout")
            pairs = {pair_of(p) for p in found}
            assert pairs <= every.setdefault(operation, pairs)
    # A zero divides nothing; otherwise all operations hold out the same pairs.
    assert every["+"] == every["-"] == every["*"]
    assert every["/"] == {pair for pair in every["*"] if 0 not in pair}


def test_the_held_out_share_is_as_asked() -> None:
    pairs = [(a, b) for a in range(200) for b in range(a + 1)]
    for fraction in (0.05, 0.1, 0.5):
        assert sum(is_held_out(a, b, fraction) for a, b in pairs) / len(pairs) == pytest.approx(fraction, rel=0.1)


def test_operations_and_digits_are_in_balance() -> None:
    found = make(count=1200, min_digits=2, max_digits=4)
    shares = Counter((p.operation, p.digits) for p in found)
    assert len(shares) == 12
    assert set(shares.values()) == {100}
    for p in found:
        assert len(str(max(pair_of(p)))) == p.digits


def test_a_cell_that_runs_out_leaves_its_share_to_the_others() -> None:
    found = make(operations=["+"], forms=["symbolic"], count=1000, max_digits=3, split="heldout")
    shares = Counter(p.digits for p in found)
    assert len(found) == 1000
    assert shares[1] < 20
    assert abs(shares[2] - shares[3]) <= 1


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_small_ranges_end(split: str) -> None:
    found = make(max_digits=1, count=10**9, split=split)
    assert 0 < len(found) < 4 * 100 * 6
    assert len({p.prompt for p in found}) == len(found)


def test_every_small_problem_is_made() -> None:
    sums = {
        p.operands
        for split in ("train", "heldout")
        for p in make(operations=["+"], forms=["symbolic"], max_digits=1, split=split, heldout_fraction=0.001)
    }
    assert sums == {(a, b) for a in range(10) for b in range(10)}


def test_a_pair_comes_again_only_after_all_others() -> None:
    found = make(operations=["*"], forms=["worded"], min_digits=2, max_digits=2, count=3000)
    assert len({pair_of(p) for p in found}) == len(found)


def test_deterministic_by_seed_whatever_the_hash_seed() -> None:
    code = (
        "from leveret.tasks.arithmetic import *;"
        "print(*as_documents(ArithmeticOptions(count=50, seed=3)), sep='\\n', end='')"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    here = "\n".join(as_documents(ArithmeticOptions(count=50, seed=3)))
    assert runs == [here, here]
    assert here != "\n".join(as_documents(ArithmeticOptions(count=50, seed=4)))


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert make(count=500)[:100] == make(count=100)


def test_documents_and_pairs_say_the_same() -> None:
    options = ArithmeticOptions(operations=("+",), forms=("symbolic",), count=20)
    documents = list(as_documents(options))
    assert documents == [f"{prompt} {answer}" for prompt, answer in as_pairs(options)]
    for document in documents:
        left, right = document.split(" = ")
        a, b = left.split(" + ")
        assert int(a) + int(b) == int(right)


def test_working_ends_in_the_answer() -> None:
    options = ArithmeticOptions(forms=("symbolic",), max_digits=3, count=4000, working=True)
    plain = dict(as_pairs(options.model_copy(update={"working": False})))
    worked = dict(as_pairs(options))
    assert list(worked) == list(plain)
    assert all(text.split()[-1] == plain[prompt] for prompt, text in worked.items())
    assert all(worked[prompt] == plain[prompt] for prompt in plain if " / " in prompt)


def test_sums_and_differences_are_worked_from_the_right() -> None:
    for operation in "+-":
        options = ArithmeticOptions(operations=(operation,), forms=("symbolic",), count=1000, working=True)
        for prompt, text in as_pairs(options):
            a, _, b, _ = prompt.split()
            digits, carry = "", 0
            for x, y in zip(a.zfill(4)[::-1], b.zfill(4)[::-1], strict=True):
                column = int(x) + carry + (int(y) if operation == "+" else -int(y))
                carry, digit = divmod(column, 10)
                digits += str(digit)
            width = len(a) if operation == "-" else len(str(int(a) + int(b)))
            assert text.split(" -> ")[0] == digits[:width]


def test_products_are_worked_by_the_second_numbers_digits() -> None:
    options = ArithmeticOptions(operations=("*",), forms=("symbolic",), max_digits=3, count=2000, working=True)
    worked = [(prompt, text) for prompt, text in as_pairs(options) if " = " in text]
    assert len(worked) > 1000
    for prompt, text in worked:
        a, _, b, _ = prompt.split()
        addends = [int(part) for part in text.split(" = ")[0].split(" + ")]
        assert addends == [int(a) * int(digit) * 10 ** (len(b) - 1 - at) for at, digit in enumerate(b) if digit != "0"]
        assert sum(addends) == int(text.split()[-1])
        assert len(addends) > 1
        assert int(a) > 9
        assert text.split(" = ")[1].split(" -> ")[0][::-1] == text.split()[-1]


@pytest.mark.parametrize(
    "wrong", [{"min_digits": 3, "max_digits": 2}, {"operations": []}, {"operations": ["^"]}, {"heldout_fraction": 0}]
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ArithmeticOptions.model_validate(wrong)
