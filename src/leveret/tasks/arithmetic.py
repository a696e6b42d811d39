"""Arithmetic problems, generated: training and held-out problems that share no pair of operands.

    options -> cells (operation x digits x form) -> pairs in a keyed order -> the wanted side -> problems, cell by cell

Every problem is made from an unordered pair of numbers: the two operands, or, in a division, the divisor and the
quotient (the dividend is their product, so every division is exact).

**The hold-out rule.** A pair is held out by a hash of its two numbers: whatever the order of the operands, the
operation, the seed or the count. A held-out problem is one whose pair is held out. A training problem must clear
two pairs: its own, and the one that a division would confuse it with (for a division, the dividend and divisor as
written; for the rest, where one operand divides the other, that divisor and its quotient). So a held-out product is
not trained through division, and no two operands as written are on both sides. A held-out sum may still be met in
training as the difference that undoes it: that problem has other operands.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Literal, Self

from pydantic import Field, model_validator

from leveret.config import Config

Operation = Literal["+", "-", "*", "/"]
Form = Literal["symbolic", "worded"]

CHUNK = 256
"""Pairs permuted at a time."""

_RESULT = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

_PROMPTS: dict[Form, dict[Operation, tuple[str, ...]]] = {
    "symbolic": {"+": ("{a} + {b} =",), "-": ("{a} - {b} =",), "*": ("{a} * {b} =",), "/": ("{a} / {b} =",)},
    "worded": {
        "+": (
            "what is {a} plus {b}?",
            "add {a} and {b}.",
            "what is the sum of {a} and {b}?",
            "how much do {a} and {b} make together?",
            "{a} grows by {b}. what is it now?",
        ),
        "-": (
            "what is {a} minus {b}?",
            "subtract {b} from {a}.",
            "what is the difference between {a} and {b}?",
            "take {b} away from {a}. how much is left?",
            "{a} shrinks by {b}. what is it now?",
        ),
        "*": (
            "what is {a} times {b}?",
            "multiply {a} by {b}.",
            "what is the product of {a} and {b}?",
            "how much do {a} lots of {b} make?",
            "{a} rows hold {b} seats each. how many seats are there?",
        ),
        "/": (
            "what is {a} divided by {b}?",
            "divide {a} by {b}.",
            "how many times does {b} go into {a}?",
            "share {a} equally among {b}. how much does each get?",
            "{a} seats stand in rows of {b}. how many rows are there?",
        ),
    },
}


class ArithmeticOptions(Config):
    """What the generator of arithmetic problems is asked for."""

    operations: tuple[Operation, ...] = Field(("+", "-", "*", "/"), min_length=1)
    """Which operations, in equal shares."""
    min_digits: int = Field(1, ge=1, le=9)
    """Fewest digits of the larger number of a pair."""
    max_digits: int = Field(3, ge=1, le=9)
    """Most digits of the larger number of a pair. A dividend, being a product, may have twice as many."""
    forms: tuple[Form, ...] = Field(("symbolic", "worded"), min_length=1)
    """`symbolic` (`47 + 83 =`) and `worded` (`what is 47 plus 83?`), in equal shares."""
    count: int = Field(10_000, gt=0)
    """Problems, as far as there are that many."""
    split: Literal["train", "heldout"] = "train"
    """Training problems or held-out ones."""
    heldout_fraction: float = Field(0.1, ge=0.001, le=0.5)
    """Share of the pairs that is held out, from 0.001 to 0.5. Both splits must be made with the same share."""
    working: bool = False
    """Show how an answer is found: a sum's or a difference's digits from the right, as they are worked out, then the
    answer, `8849 -> 9488` to `2790 + 6698 =`; a product's partial products, then their sum, `3760 + 141 = 1093 -> 3901`
    to `47 * 83 =`. Each digit then follows from few others (Lee et al., 2023, "Teaching Arithmetic to Small
    Transformers"), so that a small model learns it from few problems. Divisions have none."""
    seed: int = 0
    """Seed of the order. Which pairs are held out does not depend on it."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits ({self.min_digits}) is greater than max_digits ({self.max_digits})")
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    prompt: the question. answer: its answer, in digits. digits: how many the larger number of the pair has.
    operands: the two numbers as they are written, so of a division the dividend and the divisor.
    """

    prompt: str
    answer: str
    operation: Operation
    digits: int
    operands: tuple[int, int]

    @property
    def worked(self) -> str:
        """The answer after its working, as ArithmeticOptions.working says; the last word is the answer."""
        a, b = self.operands
        if self.operation in "+-":  # as many digits of a difference as there are columns
            return f"{self.answer.zfill(len(str(a)) if self.operation == '-' else 0)[::-1]} -> {self.answer}"
        places = [a * int(digit) * 10**power for power, digit in enumerate(reversed(str(b))) if digit != "0"]
        if self.operation == "/" or len(places) < 2 or a < 10:
            return self.answer
        return f"{' + '.join(map(str, reversed(places)))} = {self.answer[::-1]} -> {self.answer}"


def is_held_out(a: int, b: int, fraction: float) -> bool:
    """Whether the unordered pair of these numbers is held out, when that share of all pairs is."""
    digest = hashlib.sha256(f"{min(a, b)} {max(a, b)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def problems(options: ArithmeticOptions) -> Iterator[Problem]:
    """The problems of one split, each prompt once, in equal shares of operation, and within each of digits and form.

    A cell of these that runs out leaves its share to the others of its operation, and an operation to the other ones;
    when all have, the problems end before `count`. Within a cell a pair comes again, worded or ordered differently,
    only after every other pair has come.
    """
    rng = random.Random(options.seed)
    kinds = list(itertools.product(range(options.min_digits, options.max_digits + 1), dict.fromkeys(options.forms)))
    of_operations = [
        _in_turns([_cell(options, operation, *kind) for kind in kinds], rng)
        for operation in dict.fromkeys(options.operations)
    ]
    return itertools.islice(_in_turns(of_operations, rng), options.count)


def as_documents(options: ArithmeticOptions) -> Iterator[str]:
    """The problems as plain lines with their answers, such as `47 + 83 = 130`, for pretraining."""
    return (f"{problem.prompt} {problem.answer}" for problem in problems(options))


def as_pairs(options: ArithmeticOptions) -> Iterator[tuple[str, str]]:
    """The problems as (prompt, answer), for fine-tuning and evaluation."""
    return ((each.prompt, each.worked if options.working else each.answer) for each in problems(options))


def as_preferences(options: ArithmeticOptions) -> Iterator[tuple[str, str, str]]:
    """The problems as (prompt, answer, the answer with one wrong digit)."""
    rng = random.Random(f"mistakes/{options.seed}")
    for problem in problems(options):
        place = rng.randrange(len(problem.answer))
        right = problem.answer[place]
        digits = "123456789" if place == 0 and len(problem.answer) > 1 else "0123456789"
        wrong = rng.choice(digits.replace(right, ""))
        yield problem.prompt, problem.answer, problem.answer[:place] + wrong + problem.answer[place + 1 :]


def _in_turns(cells: list[Iterator[Problem]], rng: random.Random) -> Iterator[Problem]:
    """One problem of every cell that has any left, in a new order each time, until none has."""
    while cells:
        rng.shuffle(cells)
        drawn = [(cell, next(cell, None)) for cell in cells]
        cells = [cell for cell, problem in drawn if problem]
        yield from (problem for _, problem in drawn if problem)


def _cell(options: ArithmeticOptions, operation: Operation, digits: int, form: Form) -> Iterator[Problem]:
    """All problems of one operation, number of digits and form on the wanted side."""
    prompts = _PROMPTS[form][operation]
    orders = 1 if operation == "-" else 2  # a difference is never negative
    variants = len(prompts) * orders
    # Each round goes through all pairs, and shows each in its next variant.
    for turn in range(variants):
        for place, (low, high) in enumerate(_pairs(digits, f"{options.seed} {operation} {digits} {form}")):
            prompt, swapped = divmod((low + high + place + turn) % variants, orders)
            if (swapped and low == high) or (operation == "/" and low == 0):
                continue
            first, second = (low, high) if swapped else (high, low)
            a, b = (first * second, second) if operation == "/" else (first, second)
            if _belongs(options, (low, high), _confused(operation, (low, high), (a, b))):
                answer = _RESULT[operation](a, b)
                yield Problem(prompts[prompt].format(a=a, b=b), str(answer), operation, digits, (a, b))


def _confused(operation: Operation, pair: tuple[int, int], written: tuple[int, int]) -> tuple[int, int]:
    """The other pair that a training problem must clear; its own where there is no other."""
    low, high = pair
    if operation == "/":
        return written
    return (low, high // low) if low and high % low == 0 else pair


def _belongs(options: ArithmeticOptions, pair: tuple[int, int], confused: tuple[int, int]) -> bool:
    """Whether a problem is on the wanted side."""
    held_out = is_held_out(*pair, options.heldout_fraction)
    if options.split == "heldout":
        return held_out
    return not held_out and not is_held_out(*confused, options.heldout_fraction)


def _pairs(digits: int, key: str) -> Iterator[tuple[int, int]]:
    """Every pair (low, high) whose larger number has that many digits, once, in the order that the key names.

    Pairs are numbered by rows of a triangle: row `high` begins at high (high + 1) / 2 and holds low = 0 ... high.
    """
    import numpy as np

    from leveret.data.windows import permute

    first_row = 10 ** (digits - 1) if digits > 1 else 0
    first = first_row * (first_row + 1) // 2
    size = 10**digits * (10**digits + 1) // 2 - first
    number_of_key = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    for start in range(0, size, CHUNK):
        places = np.arange(start, min(start + CHUNK, size))
        for offset in permute(places, size, number_of_key).tolist():
            number = first + offset
            high = (isqrt(8 * number + 1) - 1) // 2
            yield number - high * (high + 1) // 2, high
