"""Batches are a pure function of seed and step, cover the data once an epoch, and learn from no padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.shards import ShardWriter, TokenSplit, TokenStore
from leveret.data.windows import Windows, best_fit, concatenated
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.objective import NextToken

LENGTH = 6
PAD = 99


def make_split(folder: Path, documents: list[list[int]], windows: Windows | None = None) -> TokenSplit:
    """Documents end to end, in shards of 10."""
    writer = ShardWriter(folder, 100_000, 10)
    for ids in documents:
        writer.add("train", ids, len(ids))
    if windows is None:
        windows = concatenated(writer.starts("train"), writer.splits["train"].tokens, LENGTH)
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
    writer.finish({"train": Windows(np.array([[0, 5], [5, 4]]))}, {})
    return TokenStore(folder).split("train")


def together(parts: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(part, name) for part in parts])


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
    split = make_split(tmp_path / "s", documents, Windows(np.stack([starts, np.array(lengths)], axis=1)))
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
    """In batches of one shape, the last filled up with rows that nothing is learnt from."""
    batches = Batches(counting(tmp_path / "s", 11), 4, LENGTH, seed=5, pad_id=PAD)
    for most in (None, 3, 100):
        every = list(batches.in_order(most))
        assert [len(batch.inputs) for batch in every] == [4, 4, 4]
        assert [row for batch in every for row in rows_of(batch)][:11] == list(range(11))
        assert (every[2].inputs[3] == PAD).all()
        assert (every[2].targets[3] == IGNORED).all()
    (only,) = Batches(batches.split, 64, LENGTH).in_order()
    assert len(only.inputs) == 11, "there is no other shape to be like"


def test_what_is_learnt_from_is_counted_once(tmp_path: Path) -> None:
    targets = torch.full((3, 4), IGNORED)
    targets[0, 2], targets[1, 0], targets[2, 3] = 5, 6, 7
    batch = Batch(torch.zeros_like(targets), targets)
    counted = batch.counted()
    assert counted.learnt is not None
    assert (counted.weight, counted.learnt.tolist()) == (3, [2, 4, 11])
    assert batch.learnt is not None
    assert (batch.weight, batch.learnt.tolist()) == (3, [2, 4, 11])
    targets[:] = 1  # after counting nobody looks again, as nobody could without waiting on a GPU
    assert (counted.weight, counted.learnt.tolist()) == (3, [2, 4, 11])
    assert batch.counted().learnt is None, "all are"


@pytest.mark.parametrize(("multiple", "length"), [(1, 3), (2, 4), (5, 5), (6, 6), (12, None), (100, None)])
def test_places_learnt_from_come_to_a_multiple(multiple: int, length: int | None) -> None:
    targets = torch.full((3, 4), IGNORED)
    targets[0, 0], targets[1, 0], targets[2, 3] = 5, 6, 7
    learnt = Batch(torch.zeros_like(targets), targets).counted(multiple).learnt
    if length is None:
        assert learnt is None, "every position"
    else:
        assert learnt is not None
        assert len(learnt) == length
        assert learnt[:3].tolist() == [0, 4, 11]
        assert (targets.flatten()[learnt[3:]] == IGNORED).all()
    nothing = Batch(targets, torch.full_like(targets, IGNORED)).counted(multiple)
    assert nothing.weight == 0
    assert nothing.learnt is None if length is None else len(nothing.learnt) == multiple


def test_in_order_spreads_a_few_batches(tmp_path: Path) -> None:
    batches = Batches(counting(tmp_path / "s", 41), 4, LENGTH)
    few = list(batches.in_order(3))
    rows = [row for batch in few for row in rows_of(batch)]
    assert [len(batch.inputs) for batch in few] == [4, 4, 4]
    assert rows == sorted(set(rows)), "no window twice"
    assert (rows[0], rows[-1]) == (0, 40)
    assert np.diff(rows).max() <= 4


# --- windows of several pieces -------------------------------------------------------------------------------


def in_words(split: TokenSplit, pieces: list[list[int]], length: int) -> list[list[int]]:
    """Inputs, targets, positions and documents of the row that a window should become, token by token."""
    tokens = [int(t) for shard in split.shards for t in shard]
    learn = [bool(m) for mask in split.masks for m in mask] or [True] * len(tokens)
    row: list[tuple[int, bool, int, int]] = []  # token, learnt, position, document
    document = -1
    for start, size in pieces:
        for place in range(start, start + size):
            border = place in split.starts
            if place == start or border:
                document, position = document + 1, 0
            row.append((tokens[place], learn[place] and (place > start or border), position, document))
            position += 1
    row = row[: length + 1]
    used = max(len(row) - 1, 0)
    filling = length - used
    last = row[used - 1][3] + 1 if used else 0
    return [
        [token for token, *_ in row[:used]] + [PAD] * filling,
        [token if learnt else IGNORED for token, learnt, *_ in row[1:]] + [IGNORED] * filling,
        [position for *_, position, _ in row[:used]] + list(range(filling)),
        [document for *_, document in row[:used]] + [last] * filling,
    ]


def random_split(folder: Path, seed: int, masked: bool) -> TokenSplit:
    random = np.random.default_rng(seed)
    writer = ShardWriter(folder, 1000, 23, masked=masked)
    for _ in range(40):
        size = int(random.integers(1, 19))
        learn = (random.random(size) < 0.5).tolist() if masked else None
        writer.add("train", random.integers(0, 900, size).tolist(), size, learn)
    windows = concatenated(writer.starts("train"), writer.splits["train"].tokens, LENGTH)
    writer.finish({"train": windows}, {})
    return TokenStore(folder).split("train")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["concatenated", "best fit", "any pieces"])
def test_rows_are_as_in_words(tmp_path: Path, kind: str, masked: bool) -> None:
    for seed in range(4):
        split = random_split(tmp_path / str(seed), seed, masked)
        if kind == "best fit":
            split.windows = best_fit(split.starts, split.tokens, LENGTH)
        elif kind == "any pieces":  # overlapping, of one token, and longer together than a row
            random = np.random.default_rng(seed)
            starts = random.integers(0, split.tokens, 60)
            sizes = np.minimum(random.integers(1, 12, 60), split.tokens - starts)
            borders = np.unique([0, *random.integers(1, 60, 25), 60])
            split.windows = Windows(np.stack([starts, sizes], axis=1), borders)
        count = len(split.windows)
        batch = Batches(split, count, LENGTH, pad_id=PAD, tell_documents=True).of_windows(np.arange(count))
        assert batch.positions is not None
        assert batch.documents is not None
        for row in range(count):
            inputs, targets, positions, documents = in_words(split, split.windows.of(np.array([row])).tolist(), LENGTH)
            assert batch.inputs[row].tolist() == inputs
            assert batch.targets[row].tolist() == targets
            assert batch.positions[row].tolist() == positions
            assert batch.documents[row].tolist() == documents
        plain = Batches(split, count, LENGTH, pad_id=PAD).of_windows(np.arange(count))
        assert torch.equal(plain.inputs, batch.inputs)
        assert torch.equal(plain.targets, batch.targets)


def test_best_fit_teaches_every_token_but_the_first_once(tmp_path: Path) -> None:
    """The first token of a document may be a target besides, where it follows another document."""
    lengths = [1, 2, 3, 4, 6, 7, 8, 12, 13, 14, 30]
    numbers = iter(range(1, 200))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    split = make_split(tmp_path / "s", documents)
    split.windows = best_fit(split.starts, split.tokens, LENGTH)
    targets = torch.cat([b.targets[b.targets != IGNORED] for b in Batches(split, 3, LENGTH).in_order()]).tolist()
    firsts = {document[0] for document in documents}
    assert sorted(t for t in targets if t not in firsts) == [t for document in documents for t in document[1:]]
    assert len(set(targets)) == len(targets)


def test_windows_of_several_pieces_are_kept_on_disk(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", 100, 10)
    for ids in ([1, 1, 1], [2, 2], [3] * 9, [4, 4, 4]):
        writer.add("train", ids, len(ids))
    windows = best_fit(writer.starts("train"), 17, LENGTH)
    writer.finish({"train": windows}, {})
    store = TokenStore(tmp_path / "s")
    assert store.manifest["splits"]["train"]["windows"]["count"] == len(windows) == 3
    read = store.split("train").windows
    assert read.offsets is not None
    assert windows.offsets is not None
    assert read.pieces.tolist() == windows.pieces.tolist()
    assert read.offsets.tolist() == windows.offsets.tolist()
    assert store.verify() == []
    (tmp_path / "s" / "train-offsets.npy").write_bytes(b"")
    assert store.verify() == ["train-offsets.npy"]


# --- ranks, jumps, skipped steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 2, 3, 7, 20])
def test_any_number_of_ranks_and_micro_batches_makes_up_the_batch(tmp_path: Path, ranks: int, micro: int) -> None:
    split = make_split(tmp_path / "s", [[n, n + 1, n + 2, n + 3, n + 4] for n in range(30)])
    names = ("inputs", "targets", "positions", "documents")
    whole = Batches(split, 7, LENGTH, seed=4, tell_documents=True)
    shares = [Batches(split, 7, LENGTH, seed=4, tell_documents=True, rank=r, ranks=ranks) for r in range(ranks)]
    for step in (0, 1, 5, 40):
        batch = whole.batch(step)
        parts = [part for share in shares for part in share.batch(step).split(micro)]
        assert {len(share.batch(step).inputs) for share in shares} == {-(-7 // ranks)}
        assert sum(part.weight for part in parts) == batch.weight
        for name in names:
            assert torch.equal(together(parts, name)[:7], getattr(batch, name))
        assert (together(parts, "targets")[7:] == IGNORED).all()


def test_a_rank_with_nothing_but_filling_learns_nothing(tmp_path: Path) -> None:
    """And does not fail: it takes part in a step like the others."""
    batch = Batches(counting(tmp_path / "s", 11), 2, LENGTH, rank=2, ranks=3, tell_documents=True).batch(0)
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            vocab_size=100,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=LENGTH,
        )
    )
    loss = NextToken().loss(model, batch)
    loss.backward()
    assert (batch.weight, loss.item()) == (0, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_in_order_cover_the_split_once(tmp_path: Path, ranks: int) -> None:
    split = counting(tmp_path / "s", 11)
    shares = [list(Batches(split, 4, LENGTH, pad_id=PAD, rank=r, ranks=ranks).in_order()) for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "no rank waits for another"
    real = [
        row
        for batches in zip(*shares, strict=True)
        for batch in batches
        for row, learnt in zip(rows_of(batch), (batch.targets != IGNORED).any(1).tolist(), strict=True)
        if learnt
    ]
    assert real == list(range(11))


def test_a_jump_reads_nothing_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = counting(tmp_path / "s", 500)
    read: list[tuple[int, int]] = []
    original = TokenSplit.read

    def noting(self: TokenSplit, arrays: list[Any], start: int, length: int) -> Any:
        read.append((start, length))
        return original(self, arrays, start, length)

    monkeypatch.setattr(TokenSplit, "read", noting)
    batches = Batches(split, 4, LENGTH, seed=2)
    for step in (0, 124, 10**9):
        read.clear()
        batch = batches.batch(step)
        assert read == [(row * LENGTH, LENGTH + 1) for row in rows_of(batch)]


def test_skipped_batches_are_passed_over(tmp_path: Path) -> None:
    split = counting(tmp_path / "s", 97)
    order = [rows_of(Batches(split, 4, LENGTH, seed=1).batch(step)) for step in range(40)]
    for skipped in (set(), {0}, {3}, {0, 1, 2}, {5, 6, 20}, {39}, {100}):
        batches = Batches(split, 4, LENGTH, seed=1, skipped=frozenset(skipped))
        left = [rows for place, rows in enumerate(order) if place not in skipped]
        assert [rows_of(batches.batch(step)) for step in range(len(left))] == left


def test_skipping_a_batch_changes_no_step_before(tmp_path: Path) -> None:
    batches = Batches(counting(tmp_path / "s", 97), 4, LENGTH, seed=1, skipped=frozenset({2, 9}))
    before = [rows_of(batches.batch(step)) for step in range(30)]
    batches.skipped |= {batches.place(12)}
    assert [rows_of(batches.batch(step)) for step in range(29)] == before[:12] + before[13:]
