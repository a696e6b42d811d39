"""Batches made ahead: the same ones in the same order, no further ahead than said, and a thread that ends."""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny_training import CPU, settings, trainer

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.training.prefetch import AHEAD, prefetch


def numbered(step: int) -> list[Batch]:
    ids = torch.full((1, 2), step)
    return [Batch(ids, ids)]


def loaders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_order_is_that_of_the_steps() -> None:
    found = [int(parts[0].inputs[0, 0]) for parts in prefetch(numbered, range(3, 20), CPU)]
    assert found == list(range(3, 20))
    assert list(prefetch(numbered, range(0), CPU)) == []
    assert loaders() == []


def test_the_next_batches_are_made_while_the_step_is_at_work() -> None:
    made: list[tuple[int, str]] = []

    def load(step: int) -> list[Batch]:
        made.append((step, threading.current_thread().name))
        return numbered(step)

    with closing(prefetch(load, range(100), CPU)) as batches:
        next(batches)
        deadline = time.monotonic() + 30
        while len(made) < 1 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert [step for step, _ in made] == list(range(1 + AHEAD)), "and no further"
        assert all(name.startswith("batches") for _, name in made)
    assert loaders() == [], "closing ends the thread"
    assert len(made) <= 2 + AHEAD


def test_an_error_in_the_loader_is_raised_at_its_step() -> None:
    def load(step: int) -> list[Batch]:
        if step == 4:
            raise OSError("shard 4 is gone")
        return numbered(step)

    batches = prefetch(load, range(10), CPU)
    assert [int(next(batches)[0].inputs[0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="shard 4 is gone"):
        next(batches)
    assert loaders() == []


def test_micro_batches_come_cut_and_counted(tmp_path: Path, packed: TokenStore) -> None:
    run = trainer(tmp_path, packed, settings(micro_batch_size=3, document_mask=True))
    whole = run.batches.batch(5)
    (parts,) = prefetch(lambda step: run.micro_batches(run.batches.batch(step)), [5], CPU)
    assert [len(part.inputs) for part in parts] == [3, 3, 2]
    assert all(part.is_counted for part in parts)
    assert sum(part.weight for part in parts) == whole.weight
    for name in ("inputs", "targets", "positions", "documents"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for part in parts:
        assert part.learnt is not None
        assert (part.targets.flatten()[part.learnt] >= 0).all()
        assert len(part.learnt) == part.weight
