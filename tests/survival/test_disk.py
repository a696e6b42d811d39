"""A disk that is full, or too small, or refuses: it stops nothing but the save, and never costs an older checkpoint."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_training import figures, same, settings, trainer, weights
from torch import Tensor

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.training import loop, saving
from leveret.training.checkpoint import Checkpoint, Snapshot, open_checkpoint, steps_on_disk, write_checkpoint
from leveret.training.loop import train
from leveret.training.metrics import read_events
from leveret.training.objective import NextToken
from leveret.training.saving import free_space, space_needed
from leveret.training.signals import Interrupted

PLAIN = {"steps": 12, "eval_every": 4, "checkpoint_every": 2, "keep_last": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, store: TokenStore) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(trainer(folder, store, settings(**PLAIN)))
    return folder


def refuse(monkeypatch: pytest.MonkeyPatch, which: Callable[[int, int], bool], number: int = errno.ENOSPC) -> list[int]:
    """Makes saves fail: which(step, how many saves were begun). Returns the steps of those begun, as they come."""
    begun: list[int] = []

    def write(folder: Path, snapshot: Snapshot) -> Checkpoint:
        begun.append(snapshot.step)
        if which(snapshot.step, len(begun)):
            raise OSError(number, os.strerror(number), str(folder))
        return write_checkpoint(folder, snapshot)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    monkeypatch.setattr(saving, "PAUSE_SECONDS", 0.0)
    return begun


def kinds(folder: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_events(folder)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_save_that_fails_is_told_of_and_training_goes_on(
    tmp_path: Path, store: TokenStore, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, lambda step, _: step in (6, 8), number)
    run = trainer(tmp_path / "run", store, settings(**PLAIN))
    seen = []
    run.probe = lambda step, model: seen.append(steps_on_disk(run.folder / "checkpoints")) or {}
    train(run)
    assert seen[1] in ([2, 4], [4]), "at step 8 the older ones are there, or the newest of them where room was short"
    assert kinds(run.folder) == [("save-failed", 6), ("save-failed", 8), ("saved-again", 10)]
    said = run.console.file.getvalue()  # type: ignore[attr-defined]
    assert f"step 6 was not saved ({os.strerror(number)}); another save is tried" in said
    assert figures(run.folder) == figures(undisturbed)
    assert same(weights(run.folder), weights(undisturbed))


def test_a_failed_save_is_tried_again_between_checkpoint_steps(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)
    begun = refuse(monkeypatch, lambda step, _: step in (4, 5, 6), errno.EIO)
    train(trainer(tmp_path, store, settings(**PLAIN | {"checkpoint_every": 4})))
    assert begun == [4, 5, 6, 7, 8, 12]
    assert steps_on_disk(tmp_path / "checkpoints")[-1] == 12


def test_a_full_disk_costs_older_checkpoints_before_it_costs_new_ones(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    refuse(monkeypatch, lambda step, _: len(steps_on_disk(folder)) >= 3)
    run = trainer(tmp_path, store, settings(**PLAIN | {"keep_last": 9, "eval_every": 12}))
    train(run)
    assert "the disk is full, so older checkpoints were deleted before their time" in caplog.text
    assert 12 in steps_on_disk(folder)
    assert kinds(tmp_path) == []


def test_the_only_whole_checkpoint_is_never_given_up(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "INSIST_SECONDS", 0.05)
    refuse(monkeypatch, lambda step, _: step > 2)
    with pytest.raises(
        UserError, match=r"step 12 could not be saved .* the same command goes on from step 2$"
    ) as caught:
        train(trainer(tmp_path, store, settings(**PLAIN)))
    assert f"{tmp_path}/checkpoints (No space left on device); mend that" in str(caught.value)
    assert open_checkpoint(tmp_path / "checkpoints" / "step-00000002").step == 2
    monkeypatch.undo()
    train(trainer(tmp_path, store, settings(**PLAIN)))
    assert 12 in steps_on_disk(tmp_path / "checkpoints")


def test_a_damaged_newest_one_is_not_what_older_ones_are_given_up_for(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "INSIST_SECONDS", 0.0)
    folder = tmp_path / "checkpoints"

    def damage(step: int, _: int) -> bool:
        if step == 6:
            (folder / "step-00000004" / "model.safetensors").write_bytes(b"")
        return step >= 6

    refuse(monkeypatch, damage)
    with pytest.raises(UserError, match="could not be saved"):
        train(trainer(tmp_path, store, settings(**PLAIN)))
    assert open_checkpoint(folder / "step-00000002").step == 2


@pytest.mark.parametrize("signalled", [False, True])
def test_the_last_save_is_insisted_on(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    begun = refuse(monkeypatch, lambda step, count: count < 9 and step >= 5, errno.EIO)
    run = trainer(tmp_path, store, settings(**PLAIN))
    if signalled:
        made = run.batches.batch

        def batch(step: int) -> Any:
            if step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.05)
            return made(step)

        run.batches.batch = batch  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match="SIGUSR1") as caught:
            train(run)
        assert caught.value.exit_code == 128 + signal.SIGUSR1
    else:
        train(run)
        assert begun[-1] == 12
    assert steps_on_disk(tmp_path / "checkpoints")[-1] == begun[-1]


def test_too_little_room_is_said_before_the_first_step(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, store, settings(**PLAIN))
    need = space_needed(run.model.config, run.config, 12)
    monkeypatch.setattr(saving, "free_space", lambda folder: need - 1)
    with pytest.raises(UserError, match=r"will need 0\.02 GB for checkpoints and its disk has room for 0\.02 GB; make"):
        train(run)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "metrics.jsonl").exists()
    run.room_after = 10**9
    with pytest.raises(UserError, match=r"will need 1\.02 GB"):
        train(run)
    monkeypatch.setattr(saving, "free_space", lambda folder: None)  # a disk that does not say
    train(run)


def test_before_each_save_there_must_be_room_for_it(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [10**9] * 3 + [10**6] * 2 + [10**9] * 9
    monkeypatch.setattr(saving, "free_space", lambda folder: left.pop(0))
    monkeypatch.setattr(saving, "prune", lambda *_: None)
    train(trainer(tmp_path, store, settings(**PLAIN)))
    assert kinds(tmp_path)[0] == ("save-failed", 6)
    assert 6 not in steps_on_disk(tmp_path / "checkpoints")


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon"])
def test_the_room_needed_is_what_checkpoints_take(tmp_path: Path, store: TokenStore, kind: str) -> None:
    """Counted on wide layers, beside which names and margins are little."""
    from tiny_training import decoder

    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    changes = {"steps": 2, "checkpoint_every": 1, "eval_every": 2, "optimizer": {"kind": kind, "lr": 0.001}}
    run = trainer(tmp_path, store, settings(**changes), model=decoder(**shape))
    train(run)
    there = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    beside = saving.METRICS_BYTES + saving.ROW_BYTES * 2
    need = space_needed(run.model.config, run.config, 2) - beside - 2 * saving.MARGIN
    assert 0.9 * there < need < 1.1 * there


def test_the_nearest_folder_that_exists_says_how_much_is_free(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet" / "there") == pytest.approx(free_space(tmp_path), rel=0.2)


# --- written beside the training, as on a GPU -----------------------------------------------------------------


class Threaded(saving.Saver):
    """A saver that writes in a thread though there is no GPU."""

    def __enter__(self) -> saving.Saver:
        super().__enter__()
        self.thread = ThreadPoolExecutor(1)
        return self


class Noted(NextToken):
    """Notes how often it was learnt from, and calls something at one of these times."""

    def __init__(self, at: int, then: Callable[[], object]) -> None:
        super().__init__()
        self.left, self.then = at, then

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        self.left -= model.training
        if self.left == 0 and model.training:
            self.then()
        return super().loss(model, batch)


def test_steps_go_on_while_a_save_is_written_and_it_holds_the_bits_of_its_step(
    tmp_path: Path, store: TokenStore, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 4 is not written before step 6 is under way."""
    plain = PLAIN | {"keep_last": 9, "checkpoint_every": 4}
    train(trainer(tmp_path / "plain", store, settings(**plain)))
    gate, waited = threading.Event(), []

    def write(folder: Path, snapshot: Snapshot) -> Checkpoint:
        if snapshot.step == 4:
            waited.append(gate.wait(60))
        return write_checkpoint(folder, snapshot)

    monkeypatch.setattr(loop, "Saver", Threaded)
    monkeypatch.setattr(saving, "write_checkpoint", write)
    run = trainer(tmp_path / "run", store, settings(**plain), objective=Noted(6, gate.set))
    train(run)
    assert waited == [True], "training has waited for the disk"
    assert figures(run.folder) == figures(undisturbed)
    for step in (4, 8, 12):
        name = f"checkpoints/step-{step:08d}"
        ours, theirs = open_checkpoint(run.folder / name), open_checkpoint(tmp_path / "plain" / name)
        assert ours.weights_sha256 == theirs.weights_sha256
        assert same(ours.optimizer(), theirs.optimizer())


@pytest.mark.parametrize("last", [False, True])
def test_what_goes_wrong_in_the_thread_is_told_too(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    monkeypatch.setattr(loop, "Saver", Threaded)
    monkeypatch.setattr(saving, "INSIST_SECONDS", 0.0)
    refuse(monkeypatch, lambda step, _: step == (12 if last else 6), errno.EIO)
    run = trainer(tmp_path, store, settings(**PLAIN))
    if last:
        with pytest.raises(UserError, match="step 12 could not be saved"):
            train(run)
    else:
        train(run)
        assert kinds(tmp_path) == [("save-failed", 6), ("saved-again", 8)]


def test_a_crash_waits_for_the_save_that_is_being_written(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Exception):
        pass

    def crash() -> None:
        raise Broken

    monkeypatch.setattr(loop, "Saver", Threaded)
    with pytest.raises(Broken):
        train(trainer(tmp_path, store, settings(**PLAIN), objective=Noted(5, crash)))
    assert open_checkpoint(tmp_path / "checkpoints" / "step-00000004").step == 4
