"""Windows take in every token they should, packed tightly, mixed as asked; orders are keyed permutations."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.data.config import DataConfig
from leveret.data.shards import ShardWriter
from leveret.data.windows import (
    Windows,
    best_fit,
    concatenated,
    coverage,
    join,
    make_windows,
    mixture,
    pack,
    permute,
    windows_of,
)
from leveret.errors import UserError

LENGTH = 7


def starts_of(lengths: list[int], begin: int = 0) -> np.ndarray:
    return begin + np.cumsum(lengths, dtype=np.int64) - np.array(lengths, dtype=np.int64)


def lists(windows: Windows) -> list[list[tuple[int, int]]]:
    """The pieces of each window."""
    return [[tuple(p) for p in windows.of(np.array([n])).tolist()] for n in range(len(windows))]


def numbered(count: int, begin: int = 0, size: int = LENGTH + 1) -> Windows:
    """Windows of one piece that can be told apart by where they start."""
    starts = begin + np.arange(count) * 10
    return Windows(np.stack([starts, np.full_like(starts, size)], axis=1))


# --- windows as such -----------------------------------------------------------------------------------------


def test_windows_of_one_and_of_several_pieces() -> None:
    pieces = np.array([[0, 5], [9, 2], [20, 1], [30, 4]])
    several, single = Windows(pieces, np.array([0, 1, 3, 4])), Windows(pieces)
    assert (len(several), len(single)) == (3, 4)
    assert lists(several) == [[(0, 5)], [(9, 2), (20, 1)], [(30, 4)]]
    assert lists(single) == [[(0, 5)], [(9, 2)], [(20, 1)], [(30, 4)]]
    assert several.sizes().tolist() == [5, 3, 4]
    assert single.sizes().tolist() == [5, 2, 1, 4]
    assert lists(several.select(np.array([2, 1, 1]))) == [[(30, 4)], [(9, 2), (20, 1)], [(9, 2), (20, 1)]]
    assert lists(single.select(np.array([3, 0]))) == [[(30, 4)], [(0, 5)]]
    assert lists(join([single, several])) == lists(single) + lists(several)
    assert join([single, single]).offsets is None


# --- documents to windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [0, 41])
@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 14, 15, 16, 100])
def test_concatenated_windows_cover_the_tokens(tokens: int, begin: int) -> None:
    windows = concatenated(np.array([begin]), begin + tokens, LENGTH).pieces.tolist()
    targets = [place for start, length in windows for place in range(start + 1, start + length)]
    assert targets == list(range(begin + 1, begin + len(targets) + 1)), "each target once, in order"
    assert all(start + length <= begin + tokens for start, length in windows)
    if tokens < 8:
        assert windows == [[begin, tokens]]
    else:
        assert all(length == 8 for _, length in windows)
        assert tokens - 1 - len(targets) < 7, "less than a window is left over"


def test_nothing_makes_no_windows() -> None:
    nothing = np.empty(0, dtype=np.int64)
    for make in (concatenated, best_fit):
        assert len(make(nothing, 5, LENGTH)) == 0
        assert len(make(np.array([5]), 6, LENGTH)) == 0, "a single token has no next one"


def by_the_rule(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit, the longest first, one at a time: the lengths in each row."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=80), st.integers(20, 45))
def test_packing_is_best_fit(lengths: list[int], capacity: int) -> None:
    items, offsets = pack(np.array(lengths, dtype=np.int64), capacity)
    rows = [items[a:b].tolist() for a, b in pairwise(offsets)]
    assert sorted(items.tolist()) == list(range(len(lengths)))
    assert all(row == sorted(row) and row for row in rows)
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    # Which of several rows with equal room takes an item is left open: it changes no row's room.
    assert sorted(sum(lengths[i] for i in row) for row in rows) == sorted(map(sum, by_the_rule(lengths, capacity)))


def test_rows_are_filled_well() -> None:
    lengths = np.random.default_rng(0).integers(10, 80, 2000)
    _, offsets = pack(lengths, 257)
    assert lengths.sum() / ((len(offsets) - 1) * 257) > 0.99


def test_packing_is_fast() -> None:
    """Two hundred thousand documents of a thousand different lengths: no work that grows with their square."""
    lengths = np.random.default_rng(0).integers(1, 1001, 200_000)
    items, offsets = pack(lengths, 2049)
    assert len(items) == 200_000
    assert lengths.sum() / ((len(offsets) - 1) * 2049) > 0.999


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 9))
def test_best_fit_keeps_documents_whole(lengths: list[int], begin: int) -> None:
    starts, end = starts_of(lengths, begin), begin + sum(lengths)
    windows = best_fit(starts, end, LENGTH)
    rows = lists(windows)
    assert all(sum(size for _, size in row) <= LENGTH + 1 for row in rows)
    pieces = Counter(piece for row in rows for piece in row)
    assert not pieces or max(pieces.values()) == 1
    for start, length in zip(starts.tolist(), lengths, strict=True):
        if 1 < length <= LENGTH + 1:
            assert (start, length) in pieces
    targets = [place for row in rows for start, size in row for place in range(start + 1, start + size)]
    wanted = [p for s, n in zip(starts.tolist(), lengths, strict=True) for p in range(s + 1, s + n)]
    assert sorted(targets) == wanted, "every token but the first of a document once"


def test_lost_and_padded_shares() -> None:
    lengths = [1, 3, 8, 9, 20, 2, 2, 1]
    starts, tokens = starts_of(lengths), sum(lengths)
    for make, lost in ((concatenated, tokens - (6 * LENGTH + 1)), (best_fit, 2)):
        windows = make(starts, tokens, LENGTH)
        rows = lists(windows)
        held = {place for row in rows for start, size in row for place in range(start, start + size)}
        assert tokens - len(held) == lost
        filled = sum(size for row in rows for _, size in row) / (len(rows) * (LENGTH + 1))
        expected = {"lost": pytest.approx(lost / tokens, abs=1e-6), "padded": pytest.approx(1 - filled, abs=1e-6)}
        assert coverage(windows, tokens, LENGTH) == expected
        twice = windows.select(np.repeat(np.arange(len(windows)), 2))
        assert coverage(twice, tokens, LENGTH) == expected
    assert coverage(concatenated(starts, tokens, LENGTH), tokens, LENGTH)["padded"] == 0


def test_best_fit_loses_and_pads_little() -> None:
    lengths = (np.exp(np.random.default_rng(0).normal(6, 1, 3000)).astype(int) + 2).tolist()
    windows = best_fit(starts_of(lengths), sum(lengths), 1024)
    shares = coverage(windows, sum(lengths), 1024)
    assert shares["lost"] == 0
    assert shares["padded"] < 0.01


# --- mixtures ------------------------------------------------------------------------------------------------

NONE = (None, None, None)
SOURCES = [numbered(100), numbered(50, 10_000), numbered(10, 20_000)]


def drawn_from(windows: Windows) -> list[Counter[int]]:
    """How often each window of the three sources is there."""
    places = windows.pieces[:, 0]
    return [Counter(places[(places >= low) & (places < low + 10_000)].tolist()) for low in (0, 10_000, 20_000)]


def test_every_source_once_where_nothing_is_said() -> None:
    windows, drawn = mixture(SOURCES, NONE, NONE, None)
    assert lists(windows) == lists(join(SOURCES))
    assert [source["epochs"] for source in drawn] == [1, 1, 1]
    assert [source["tokens"] for source in drawn] == [100 * LENGTH, 50 * LENGTH, 10 * LENGTH]


def test_epochs_are_whole_passes_and_a_sample() -> None:
    windows, drawn = mixture(SOURCES, NONE, (0.25, 2.5, None), None)
    first, second, third = drawn_from(windows)
    assert len(first) == 25
    assert set(first.values()) == {1}
    assert Counter(second.values()) == {2: 25, 3: 25}
    assert Counter(third.values()) == {1: 10}
    assert [(source["windows"], source["epochs"]) for source in drawn] == [(25, 0.25), (125, 2.5), (10, 1.0)]
    assert 5 < len([place for place in first if place < 500]) < 20, "the sample is of the whole source"


def test_weights_are_shares_of_the_tokens() -> None:
    windows, drawn = mixture(SOURCES, (1, 2, 1), NONE, 200 * LENGTH)
    assert [source["windows"] for source in drawn] == [50, 100, 50]
    assert [source["epochs"] for source in drawn] == [0.5, 2, 5]
    assert [sum(counts.values()) for counts in drawn_from(windows)] == [50, 100, 50]
    assert set(drawn_from(windows)[2].values()) == {5}, "more than there is: whole epochs again"
    # Without a budget as many tokens as the sources hold.
    assert [source["windows"] for source in mixture(SOURCES, (1, 2, 1), NONE, None)[1]] == [40, 80, 40]


def test_a_budget_alone_draws_all_sources_alike() -> None:
    for tokens, epochs in ((80 * LENGTH, 0.5), (320 * LENGTH, 2.0)):
        _, drawn = mixture(SOURCES, NONE, NONE, tokens)
        assert [source["epochs"] for source in drawn] == [epochs] * 3
        assert sum(source["tokens"] for source in drawn) == tokens
    assert [s["epochs"] for s in mixture(SOURCES, NONE, (1, 2, None), 105 * LENGTH)[1]] == [0.5, 1, 0.5]


def test_tokens_are_counted_where_windows_differ_in_size() -> None:
    sizes = np.random.default_rng(0).integers(2, 9, 400)
    part = Windows(np.stack([np.arange(400) * 10, sizes], axis=1))
    windows, drawn = mixture([part, numbered(100, 10_000)], (3, 1), (None, None), 1200)
    assert sum(source["tokens"] for source in drawn) == int((windows.sizes() - 1).sum())
    assert drawn[0]["tokens"] == pytest.approx(900, abs=40)  # sampled windows: in the mean
    assert drawn[1]["tokens"] == pytest.approx(300, abs=LENGTH)


def test_mixtures_are_named_by_their_seed() -> None:
    one, again, other = (mixture(SOURCES, NONE, (0.5, 0.5, 0.5), None, seed)[0] for seed in (1, 1, 2))
    assert lists(one) == lists(again)
    assert lists(one) != lists(other)
    # A larger share only adds windows.
    more = mixture(SOURCES, NONE, (0.7, 0.7, 0.7), None, 1)[0]
    assert {tuple(p) for p in one.pieces.tolist()} < {tuple(p) for p in more.pieces.tolist()}


def test_a_source_with_a_weight_and_no_text_is_refused() -> None:
    empty = Windows(np.empty((0, 2), dtype=np.int64))
    with pytest.raises(UserError, match=r"data\.sources\.1 has a weight, but no text"):
        mixture([SOURCES[0], empty], (1, 1), (None, None), None)
    windows, drawn = mixture([SOURCES[0], empty], (None, None), (None, 3.0), None)
    assert len(windows) == 100
    assert drawn[1] == {"windows": 0, "tokens": 0, "epochs": 0}


# --- the windows of a split ----------------------------------------------------------------------------------


def made(packing: Any, **mix: Any) -> tuple[Windows, dict[str, Any]]:
    """Two sources of 30 and 20 documents: 0 and 2 of the recipe, whose source 1 gave nothing."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, 50)
    sources = [
        {"source": 0, "documents": 30, "tokens": int(lengths[:30].sum())},
        {"source": 2, "documents": 20, "tokens": int(lengths[30:].sum())},
    ]
    return make_windows(starts_of(lengths.tolist()), sources, LENGTH, packing, **mix)


def test_plain_concatenation_is_one_run() -> None:
    windows, facts = made("concatenate")
    first = windows.pieces[:, 0]
    assert first.tolist() == list(range(0, LENGTH * len(windows), LENGTH))
    assert facts["packing"] == "concatenate"
    assert 0 <= facts["lost"] < 0.02
    assert "drawn" not in facts


@pytest.mark.parametrize(
    ("packing", "mix"),
    [
        ("best-fit", {}),
        ("best-fit", {"weights": (1, None, 2), "epochs": NONE}),
        ("concatenate", {"weights": NONE, "epochs": (None, None, 2)}),
        ("concatenate", {"weights": NONE, "epochs": NONE, "tokens": 300}),
    ],
)
def test_no_window_has_two_sources_in_it(packing: str, mix: dict[str, Any]) -> None:
    windows, facts = made(packing, **mix)
    border = int(np.random.default_rng(0).integers(1, 20, 50)[:30].sum())
    sides = [{start >= border for start, _ in row} | {s + n > border for s, n in row} for row in lists(windows)]
    assert all(len(side) == 1 for side in sides)
    assert {False, True} == set().union(*sides)
    if mix:
        targets = [int((windows.sizes() - 1)[[side == {which} for side in sides]].sum()) for which in (False, True)]
        assert [source["tokens"] for source in facts["drawn"]] == [targets[0], 0, targets[1]]
        assert [source["source"] for source in facts["drawn"]] == [0, 1, 2]


def test_only_training_is_a_mixture(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", 100, 1000)
    for source in range(2):
        for split in ("train", "validation"):
            writer.extend(split, np.ones(200, np.uint16), np.full(20, 10), 200, source=source)
    config = DataConfig.model_validate(
        {"sources": [{"paths": ["a"], "weight": 3}, {"paths": ["b"], "weight": 1}], "tokens": 224}
    )
    windows, facts = windows_of(writer, config, LENGTH)
    assert [source["windows"] for source in facts["train"]["drawn"]] == [24, 8]
    assert len(windows["train"]) == 32
    assert "drawn" not in facts["validation"]
    assert len(windows["validation"]) == 399 // LENGTH


# --- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(1, 35), 63, 64, 65, 255, 256, 257, 1000, 4097, 65_537])
def test_permute_is_a_bijection(size: int) -> None:
    index = np.arange(size, dtype=np.int64)
    for key in (0, 1, 12_345_678_901_234_567_890):
        moved = permute(index, size, key)
        assert np.array_equal(np.sort(moved), index)
        assert np.array_equal(index, np.arange(size)), "the argument is left alone"
        # Any part of it can be asked for alone.
        assert np.array_equal(permute(index[size // 2 :], size, key), moved[size // 2 :])


def test_permute_differs_by_key_and_mixes_well() -> None:
    size = 10_007
    index = np.arange(size, dtype=np.int64)
    orders = np.stack([permute(index, size, key) for key in range(12)])
    for a in range(12):
        assert (orders[a] == index).sum() < 10
        for b in range(a):
            assert (orders[a] == orders[b]).sum() < 10  # of random permutations: 1 in the mean
    # Of random permutations: no correlation (its deviation is 0.01), and a mean step of a third of the size.
    correlations = np.corrcoef(np.vstack([index, orders]))
    assert np.abs(correlations - np.eye(13)).max() < 0.05
    assert np.abs(np.diff(orders)).mean() == pytest.approx(size / 3, rel=0.03)


def test_a_large_permutation_costs_what_is_asked_of_it() -> None:
    moved = permute(np.arange(1000, dtype=np.int64) + 10**12, 3 * 10**12, key=5)
    assert len(set(moved.tolist())) == 1000
    assert 0 <= moved.min() < 10**11 < moved.max() < 3 * 10**12
