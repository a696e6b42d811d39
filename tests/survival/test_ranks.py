"""Several processes train as one would, whatever their number; what they have saved moves between them; a rank that
dies, hangs or lags is named, and nobody waits for it for ever."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from ranks import fates, together
from tiny_project import write_project
from tiny_training import VOCABULARY, document, losses, weights

from leveret.data.shards import ShardWriter
from leveret.data.windows import Windows
from leveret.training.checkpoint import find_checkpoint
from leveret.training.metrics import read_events, read_metrics
from leveret.training.parallel import ALONE
from leveret.training.pulse import LOST

DDP, FSDP, HYBRID = {"kind": "ddp"}, {"kind": "fsdp"}, {"kind": "fsdp", "shard_ranks": 2}
OPTIMIZERS = [{"kind": "adamw", "lr": 0.01}, {"kind": "muon", "lr": 0.01, "muon_variance": 0.9, "cautious_decay": True}]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two documents each, of unequal lengths, of which some is not learnt from."""
    folder = tmp_path_factory.mktemp("ranks") / "store"
    writer = ShardWriter(folder, VOCABULARY, 400, masked=True)
    windows: dict[str, Windows] = {}
    for split, rows in (("train", 50), ("validation", 11)):
        places, start = [], 0
        for row in range(rows):
            lengths = (2 + row % 5, 3 + row % 4)
            for number, length in enumerate(lengths):
                writer.add(split, document(row * 2 + number, length), 9, [i >= 2 for i in range(length)])
            places.append((start, sum(lengths)))
            start += sum(lengths)
        windows[split] = Windows(np.asarray(places))
    writer.finish(windows, {})
    return folder


def settings_of(**changes: Any) -> dict[str, Any]:
    return {"document_mask": True, "checkpoint_every": 3, "eval_every": 6} | changes


# --- the same steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.long)])
def test_gradients_are_those_of_the_whole_batch(tmp_path: Path, store: Path, number: int) -> None:
    """Cut into 1, 2 and 8 micro-batches in all, on one rank and on several."""
    (whole,) = ranks.gradients(ALONE, store, tmp_path, [settings_of()])
    cuts = [settings_of(micro_batch_size=rows) for rows in (4, 1)]
    for found in ranks.gradients(ALONE, store, tmp_path, cuts):
        assert all(np.abs(found[name] - whole[name]).max() < 1e-6 for name in whole)
    ways = [DDP, FSDP] + [HYBRID] * (number == 4)
    several = [settings_of(parallel=way, micro_batch_size=rows) for way in ways for rows in (8 // number, 2, 1)]
    for every in together(number, ranks.gradients, store, tmp_path, several):
        for found in every:
            assert found.keys() == whole.keys()
            assert all(np.abs(found[name] - whole[name]).max() < 1e-6 for name in whole)
    assert max(np.abs(array).max() for array in whole.values()) > 0.01, "there are gradients to compare"


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.long)])
def test_losses_and_weights_are_those_of_one_process(tmp_path: Path, store: Path, number: int) -> None:
    runs, alone = [], {}
    for optimizer in OPTIMIZERS:
        kind = str(optimizer["kind"])
        ranks.trainings(ALONE, store, [(tmp_path / kind, settings_of(optimizer=optimizer))])
        alone[kind] = tmp_path / kind
        for way in (DDP, FSDP) if number == 2 else (DDP, FSDP, HYBRID):
            name = f"{kind} {way}"
            runs.append((tmp_path / name, settings_of(optimizer=optimizer, parallel=way, micro_batch_size=1)))
    together(number, ranks.trainings, store, runs)
    for folder, changes in runs:
        one = alone[changes["optimizer"]["kind"]]
        assert losses(folder) == pytest.approx(losses(one), abs=1e-5)
        measured = [
            [row["validation_loss"] for row in read_metrics(each) if "validation_loss" in row] for each in (folder, one)
        ]
        assert len(measured[0]) == 2
        assert measured[0] == pytest.approx(measured[1], abs=1e-5)
        ours, theirs = weights(folder), weights(one)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_ranks_agree_on_an_early_stop(tmp_path: Path, store: Path) -> None:
    early = settings_of(steps=40, patience=1, eval_every=2, checkpoint_every=2, optimizer={"lr": 0.05})
    alone = ranks.trainings(ALONE, store, [(tmp_path / "alone", early)])
    runs = [(tmp_path / str(way), early | {"parallel": way}) for way in (DDP, FSDP)]
    for summary in together(2, ranks.trainings, store, runs):
        assert summary["stopped_early"]
        assert [summary[key] for key in ("steps", "best_step")] == [alone[key] for key in ("steps", "best_step")]
    for folder, _ in runs:
        newest = find_checkpoint(folder / "checkpoints")
        assert newest is not None
        assert newest.step == alone["best_step"] < alone["steps"] < 40
        assert not newest.sharded, "what stays is in the form of one device"
        ours, theirs = weights(folder), weights(tmp_path / "alone")
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [pytest.param(OPTIMIZERS[0], marks=pytest.mark.long), OPTIMIZERS[1]], ids=["adamw", "muon"]
)
def test_a_training_moves_between_1_2_and_4_ranks(tmp_path: Path, store: Path, optimizer: dict[str, Any]) -> None:
    """It is stopped by a signal to one rank, on which all agree, and goes on with others, in either way."""
    base = settings_of(optimizer=optimizer)
    ranks.trainings(ALONE, store, [(tmp_path / "one", base)])
    moved = tmp_path / "moved"
    for number, way, stop in ((2, FSDP, 3), (1, DDP, 2), (4, HYBRID, 2), (2, DDP, 2)):
        some = [(moved, base | {"parallel": way})]
        if number == 1:
            said = [ranks.trainings(ALONE, store, some, stop)]
        else:
            said = together(number, ranks.trainings, store, some, stop)
        step = max(path for path in (moved / "checkpoints").glob("step-*")).name.removeprefix("step-")
        assert said == [f"stopped by SIGTERM at step {int(step)}; the same command goes on from here"] * number
        parts = sorted(path.name for path in (moved / "checkpoints" / f"step-{step}").glob("*.safetensors"))
        assert len(parts) == (number + 1 if way["kind"] == "fsdp" and number > 1 else 3)
    assert int(step) == 9
    together(4, ranks.trainings, store, [(moved, base | {"parallel": FSDP})])
    assert losses(moved) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    last = find_checkpoint(moved / "checkpoints")
    assert last is not None
    assert not last.sharded, "what stays is in the form of one device"
    assert last.state["ranks"] == 4


def test_adapters_are_those_of_one_process(tmp_path: Path, store: Path) -> None:
    ranks.adapted(ALONE, store, tmp_path / "one", settings_of())
    together(2, ranks.adapted, store, tmp_path / "two", settings_of(parallel={"kind": "auto"}))
    assert np.allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.parametrize("kind", [pytest.param("adamw", marks=pytest.mark.long), "muon"])
def test_shares_are_kept_to_the_bit_in_safetensors_alone(tmp_path: Path, store: Path, kind: str) -> None:
    assert together(2, ranks.shards, store, tmp_path, kind) == [[], []]
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names == {f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)}


def test_a_damaged_share_makes_the_checkpoint_a_damaged_one(tmp_path: Path, store: Path) -> None:
    together(2, ranks.trainings, store, [(tmp_path, settings_of(parallel=FSDP))], 5)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    share = next(newest.glob("shard-00002*"))
    content = bytearray(share.read_bytes())
    content[-1] ^= 1
    share.write_bytes(content)
    found = find_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.folder < newest


@pytest.mark.long
@pytest.mark.parametrize("way", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_compiled_ranks_take_the_steps_of_one_that_is_not(tmp_path: Path, store: Path, way: dict[str, Any]) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    ranks.trainings(ALONE, store, [(one, settings_of())])
    together(2, ranks.trainings, store, [(two, settings_of(compile=True, parallel=way))])
    rows = [row for row in read_metrics(two) if "loss" in row]
    assert rows[-1]["graphs"] >= 1
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.parametrize("way", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_ranks_go_back_from_bad_steps_as_one_does(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    changes = settings_of(guard={"max_skipped": 2}, parallel=way)
    one, two = (tmp_path / name for name in ("one", "two"))
    together(2, ranks.trainings, store, [(two, changes)], LEVERET_FAULTS="nan@5-6")
    monkeypatch.setenv("LEVERET_FAULTS", "nan@5-6")
    ranks.trainings(ALONE, store, [(one, changes)])
    told = [[(event["kind"], event["step"]) for event in read_events(folder)] for folder in (one, two)]
    assert told[0] == told[1] == [("skipped", 5), ("skipped", 6), ("roll-back", 6)]
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(two)) == 12


# --- ranks that are lost -------------------------------------------------------------------------------------


def test_a_rank_that_dies_is_named(tmp_path: Path, store: Path) -> None:
    found = fates(2, ranks.trainings, store, [(tmp_path, settings_of())], LEVERET_FAULTS="die@5:rank1")
    assert found[1].code == 137
    assert "RankLost: rank 1 (" in found[0].error
    event = read_events(tmp_path)[-1]
    assert event["kind"] == "rank-lost"
    assert "rank 1 (" in event["error"]


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_rank_that_hangs_is_named_when_patience_is_over_and_all_end(
    tmp_path: Path, store: Path, hanging: int
) -> None:
    changes = settings_of(parallel={"patience": 2})
    found = fates(2, ranks.trainings, store, [(tmp_path, changes)], LEVERET_FAULTS=f"hang@5:rank{hanging}")
    assert [fate.code for fate in found] == [LOST, LOST]
    event = read_events(tmp_path)[-1]
    assert event["kind"] == "rank-lost"
    assert event["what"].startswith(f"rank {hanging} (")
    assert "has been at the data of step 5 for" in event["what"]
    assert int(found and max((tmp_path / "checkpoints").glob("step-*")).name.removeprefix("step-")) == 3


def test_a_rank_that_lags_is_named_and_waited_for(tmp_path: Path, store: Path) -> None:
    several = [(tmp_path, settings_of())]
    together(2, ranks.trainings, store, several, 0, 1.0, LEVERET_FAULTS="slow@5:rank1")
    late = [event for event in read_events(tmp_path) if event["kind"] == "rank-late"]
    assert late
    assert all(event["what"].startswith("rank 1 (") for event in late)
    assert len(losses(tmp_path)) == 12


# --- the command line ----------------------------------------------------------------------------------------


def test_torchrun_starts_lost_ranks_anew_and_they_go_on(tmp_path: Path, environment: Mapping[str, str]) -> None:
    recipe = write_project(tmp_path / "own")
    steps = ["pretrain.steps=12", "pretrain.checkpoint_every=4", "pretrain.log_every=1", "pretrain.precision=fp32"]
    command = [sys.executable, "-m", "leveret", "pretrain", recipe.name, *steps, "data.workers=1", "--run-dir"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    for words, fault in (([*command, "one"], ""), ([command[0], *torchrun, *command[1:], "two"], "die@6:rank1")):
        done = subprocess.run(
            words, cwd=recipe.parent, env=environment | {"LEVERET_FAULTS": fault}, capture_output=True, text=True,
            timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "rank 1 (" in done.stderr
    assert done.stderr.count("pretrain: going on from step 4\n") == 1, "one rank speaks"
    one, two = (
        [json.loads(line) for line in (recipe.parent / name / "pretrain/metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [row["loss"] for row in two if "loss" in row] == pytest.approx(
        [row["loss"] for row in one if "loss" in row], abs=1e-5
    )
