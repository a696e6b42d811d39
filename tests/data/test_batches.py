"""Batches are a pure function of seed and step, cover the data once an epoch, and learn from no padding."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leveret.data.batches import IGNORED, Batch, Batches, permute
from leveret.data.shards import IntArray, ShardWriter, TokenSplit, TokenStore, concatenated_windows

LENGTH = 6
PAD = 99


def make_split(folder: Path, documents: list[list[int]], windows: IntArray | None = None) -> TokenSplit:
    """Documents end to end, in shards of 10."""
    writer = ShardWriter(folder, 100_000, 10)
    for ids in documents:
        writer.add("train", ids, len(ids))
    if windows is None:
        windows = concatenated_windows(writer.splits["train"].tokens, LENGTH)
    writer.finish({"train": windows}, {})
    return TokenStore(folder).split("train")


def counting(folder: Path, windows: int) -> TokenSplit:
    """One document whose token t is t: window n is n * LENGTH and on."""
    return make_split(folder, [list(range(windows * LENGTH + 1))])


def rows_of(batch: Batch) -> list[int]:
    """The windows in a batch of a counting split."""
    return (batch.inputs[:, 0] // LENGTH).tolist()


def packed(folder: Path) -> TokenSplit:
    """Two rows of fine-tuning: documents of 3 and 2 tokens; one of 4. Answers (and ends) alone are learnt."""
    writer = ShardWriter(folder, 100, 4, masked=True)
    writer.add("train", [10, 11, 12], 3, [False, True, True])
    writer.add("train", [20, 21], 2, [False, True])
    writer.add("train", [30, 31, 32, 33], 4, [False, False, True, True])
    writer.finish({"train": np.array([[0, 5], [5, 4]], dtype=np.int64)}, {})
    return TokenStore(folder).split("train")


def together(parts: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(part, name) for part in parts])


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


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    split = counting(tmp_path / "s", 23)
    forwards = [Batches(split, 4, LENGTH, seed=7).batch(step) for step in range(12)]
    fresh = Batches(split, 4, LENGTH, seed=7)
    for step in (11, 3, 0, 3):  # jumps, back and forth
        assert torch.equal(fresh.batch(step).inputs, forwards[step].inputs)
        assert torch.equal(fresh.batch(step).targets, forwards[step].targets)
    other = [rows_of(Batches(split, 4, LENGTH, seed=8).batch(step)) for step in range(5)]
    assert other != [rows_of(batch) for batch in forwards[:5]]


def test_a_larger_batch_is_smaller_ones_in_a_row(tmp_path: Path) -> None:
    split = counting(tmp_path / "s", 23)
    small, large = Batches(split, 3, LENGTH, seed=1), Batches(split, 12, LENGTH, seed=1)
    rows = [row for step in range(16) for row in rows_of(small.batch(step))]
    assert rows == [row for step in range(4) for row in rows_of(large.batch(step))]


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_every_window_once_an_epoch(tmp_path: Path, batch_size: int) -> None:
    """Also where a step crosses into the next epoch, or takes in several."""
    count = 10
    batches = Batches(counting(tmp_path / "s", count), batch_size, LENGTH, seed=3)
    assert batches.steps_per_epoch == count / batch_size
    steps = -(-4 * count // batch_size)
    rows = [row for step in range(steps) for row in rows_of(batches.batch(step))]
    epochs = [rows[i : i + count] for i in range(0, 4 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has an order of its own"


def test_targets_are_the_next_tokens(tmp_path: Path) -> None:
    batch = Batches(counting(tmp_path / "s", 10), 10, LENGTH).batch(0)
    assert batch.inputs.shape == batch.targets.shape == (10, LENGTH)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs + 1, batch.targets)
    assert batch.weight == 10 * LENGTH
    assert batch.positions is None
    assert batch.documents is None


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
def test_micro_batches_make_up_the_batch(tmp_path: Path, rows: int) -> None:
    split = make_split(tmp_path / "s", [[n, n + 1, n + 2, n + 3, n + 4] for n in range(30)])
    for tell in (False, True):
        batch = Batches(split, 7, LENGTH, tell_documents=tell).batch(2)
        parts = batch.split(rows)
        assert [len(part.inputs) for part in parts] == [min(rows, 7 - i) for i in range(0, 7, rows)]
        assert sum(part.weight for part in parts) == batch.weight
        for name in ("inputs", "targets") + (("positions", "documents") if tell else ()):
            assert torch.equal(together(parts, name), getattr(batch, name))
        assert all((part.documents is None) is (not tell) for part in parts)


def test_packed_rows(tmp_path: Path) -> None:
    split = packed(tmp_path / "s")
    batch = Batches(split, 2, LENGTH, pad_id=PAD, tell_documents=True).of_windows(np.array([0, 1]))
    no = IGNORED
    assert batch.inputs.tolist() == [[10, 11, 12, 20, PAD, PAD], [30, 31, 32, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[11, 12, no, 21, no, no], [no, 32, 33, no, no, no]]
    assert batch.positions is not None
    assert batch.documents is not None
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 1, 1]]
    assert batch.weight == 5


def test_padding_is_never_learnt_from(tmp_path: Path) -> None:
    """Even where the padding is an ordinary token of the text."""
    lengths = [1, 2, 3, LENGTH, LENGTH + 1]
    documents = [[PAD] * length for length in lengths]
    starts = np.cumsum([0, *lengths[:-1]])
    split = make_split(tmp_path / "s", documents, np.stack([starts, np.array(lengths)], axis=1).astype(np.int64))
    for tell in (False, True):
        batch = Batches(split, 5, LENGTH, pad_id=PAD, tell_documents=tell).of_windows(np.arange(5))
        assert (batch.inputs == PAD).all()
        assert (batch.targets != IGNORED).sum(1).tolist() == [length - 1 for length in lengths]


def test_documents_of_windows_that_cut_them(tmp_path: Path) -> None:
    """A window may begin and end in the middle of a document; places are counted from where it begins."""
    documents = [[1] * 4, [2] * 9, [3] * 1, [4] * 5]
    split = make_split(tmp_path / "s", documents)
    batch = Batches(split, 3, LENGTH, tell_documents=True).of_windows(np.arange(3))
    assert batch.inputs.tolist() == [[1, 1, 1, 1, 2, 2], [2, 2, 2, 2, 2, 2], [2, 3, 4, 4, 4, 4]]
    assert batch.positions is not None
    assert batch.documents is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [0, 1, 2, 2, 2, 2]]


def test_empty_documents_are_passed_over(tmp_path: Path) -> None:
    split = make_split(tmp_path / "s", [[], [1, 1, 1], [], [], [2, 2, 2, 2], []])
    batch = Batches(split, 1, LENGTH, tell_documents=True).of_windows(np.array([0]))
    assert batch.inputs.tolist() == [[1, 1, 1, 2, 2, 2]]
    assert batch.positions is not None
    assert batch.documents is not None
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert (batch.documents[0, :3] == batch.documents[0, 0]).all()
    assert (batch.documents[0, 3:] == batch.documents[0, 3]).all()
    assert batch.documents[0, 0] != batch.documents[0, 3]


def test_in_order_covers_the_split_once(tmp_path: Path) -> None:
    batches = Batches(counting(tmp_path / "s", 11), 4, LENGTH, seed=5)
    for most in (None, 3, 100):
        every = list(batches.in_order(most))
        assert [len(batch.inputs) for batch in every] == [4, 4, 3]
        assert [row for batch in every for row in rows_of(batch)] == list(range(11))


def test_in_order_spreads_a_few_batches(tmp_path: Path) -> None:
    batches = Batches(counting(tmp_path / "s", 41), 4, LENGTH)
    few = list(batches.in_order(3))
    rows = [row for batch in few for row in rows_of(batch)]
    assert [len(batch.inputs) for batch in few] == [4, 4, 4]
    assert rows == sorted(set(rows)), "no window twice"
    assert (rows[0], rows[-1]) == (0, 40)
    assert np.diff(rows).max() <= 4
