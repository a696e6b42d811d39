"""What is told of a stage: figures, events, what was spent, pictures, the time left."""

import csv
import errno
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tiny_training import CPU, settings, trainer
from torch import Tensor

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.display import Display, duration
from leveret.model.decoder import Decoder
from leveret.training import meter, power
from leveret.training.loop import train
from leveret.training.meter import Clock, Meter, read_ledger
from leveret.training.metrics import Lines, MetricsLog, read_events, read_metrics
from leveret.training.objective import NextToken
from leveret.training.plots import Painter, limits
from leveret.training.power import Power


class Breaks(NextToken):
    """Raises in the middle of training."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        self.left -= model.training
        if self.left == 0:
            raise RuntimeError("planted")
        return super().loss(model, batch)


# --- metrics and events --------------------------------------------------------------------------------------


def test_metrics_are_cut_in_one_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MetricsLog(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    MetricsLog(tmp_path, 2).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_line_cut_short_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    (tmp_path / "events.jsonl").write_text('{"kind": "spike", "step": 1}\n{"kind": "sig')
    events = Lines(tmp_path / "events.jsonl")
    events.write({"kind": "restart", "step": 1})
    events.close()
    assert [event["kind"] for event in read_events(tmp_path)] == ["spike", "restart"]


class Full(io.FileIO):
    """A file on a disk that takes nothing."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "loss": 3.0})
    disk, log.file = log.file, Full(tmp_path / "full", "w")
    log.write({"step": 2, "loss": 2.0})
    log.write({"step": 2, "validation_loss": 2.5})
    assert log.validated(2)
    assert len(caplog.records) == 1, "told once, not with every line"
    log.file = disk
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2]


def test_failures_and_restarts_are_events(tmp_path: Path, store: TokenStore) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        train(trainer(tmp_path, store, settings(), objective=Breaks(7)))
    train(trainer(tmp_path, store, settings()))
    failed, restart = read_events(tmp_path)
    assert (failed["kind"], failed["step"], failed["error"]) == ("failed", 6, "RuntimeError: planted")
    assert (restart["kind"], restart["step"]) == ("restart", 4)


# --- what was spent ------------------------------------------------------------------------------------------


def test_what_is_spent_is_told_apart_and_outlives_a_crash(tmp_path: Path, store: TokenStore) -> None:
    config = settings(price=3600.0)  # a dollar a second
    with pytest.raises(RuntimeError, match="planted"):
        train(trainer(tmp_path, store, config, objective=Breaks(9)))
    first = read_ledger(tmp_path)["seconds"]
    assert all(first[kind] > 0 for kind in ("starting", "training", "waiting", "checkpoints", "validation"))
    summary = train(trainer(tmp_path, store, config))
    assert all(summary["seconds"][kind] > first[kind] for kind in first)
    assert summary["cost"] == pytest.approx(sum(summary["seconds"].values()), abs=1e-4)  # of the seconds as shown
    stepping = summary["seconds"]["training"] + summary["seconds"]["waiting"]
    assert 0 < summary["train_seconds"] < stepping  # the steps lost in the crash were paid for too
    assert read_ledger(tmp_path)["seconds"]["validation"] == summary["seconds"]["validation"]


def test_without_a_price_and_a_counter_nothing_is_guessed(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path / "none")
    summary = train(trainer(tmp_path, store, settings(steps=2)))
    assert summary["cost"] is summary["energy_kwh"] is summary["energy_source"] is None


def test_a_damaged_ledger_stops_nothing(tmp_path: Path, store: TokenStore) -> None:
    for content in ("{", "[]", '{"seconds": 3}'):
        (tmp_path / "ledger.json").write_text(content)
        assert read_ledger(tmp_path)["seconds"] == {}


def counters(folder: Path, **joules: float) -> None:
    for number, (name, value) in enumerate(joules.items()):
        domain = folder / f"intel-rapl:{number}"
        domain.mkdir(parents=True, exist_ok=True)
        (domain / "name").write_text(f"{name.replace('_', '-')}\n")
        (domain / "energy_uj").write_text(f"{round(value * 1e6)}\n")
        (domain / "max_energy_range_uj").write_text("1000000000\n")


def test_processors_are_added_up_past_the_end_of_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    counters(tmp_path, package_0=990, package_1=10, psys=100)
    used = Power(CPU)
    counters(tmp_path, package_0=5, package_1=12, psys=900)
    assert used.read() == {}
    assert used.joules == pytest.approx(15 + 2)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # what goes away stops nothing
    assert used.read() == {}
    assert used.joules == pytest.approx(17)


def test_energy_of_every_start_is_summed(tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path / "powercap")

    def spend(step: int, model: Decoder) -> dict[str, float]:
        spent[0] += 100
        counters(tmp_path / "powercap", package_0=spent[0])
        return {}

    spent = [0.0]
    counters(tmp_path / "powercap", package_0=0)
    folder = tmp_path / "run"
    fields = {"probe": spend}
    with pytest.raises(RuntimeError, match="planted"):
        train(trainer(folder, store, settings(), objective=Breaks(11), **fields))
    summary = train(trainer(folder, store, settings(), **fields))
    assert summary["energy_kwh"] == pytest.approx(300 / 3.6e6, abs=1e-6)
    assert summary["energy_source"].startswith("RAPL")
    assert summary["energy_seconds"] == pytest.approx(sum(summary["seconds"].values()), rel=0.05)


def test_a_gpu_counts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = iter([5_000_000, 5_250_000])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2**30),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetPowerUsage=lambda handle: 412_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0-1"))
    gpu = Power(torch.device("cuda"))
    assert gpu.read() == {"gpu_memory_bytes": 2**30, "gpu_utilisation": 0.87, "power_watts": 412.0}
    assert (gpu.joules, gpu.source) == (250.0, "NVML: this GPU")
    assert gpu.read() == {}  # the driver is gone
    assert gpu.joules == 250.0


# --- the time left -------------------------------------------------------------------------------------------


class Time:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_time_left_is_of_usual_steps_and_of_pauses_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Time()
    monkeypatch.setattr(meter.time, "perf_counter", clocks.perf_counter)
    clock = Clock()
    watch = Meter(clock, tokens_a_step=8, token_share=0.0, seconds=0.0, step=0)
    clock.turn("training")
    assert watch.left(100, {}) is None
    clocks.now += 60  # the first step compiles
    assert watch.lap(1)["tokens_per_second"] == pytest.approx(8 / 60)
    assert watch.left(99, {"validation": 2}) is None
    for done, seconds in ((10, 9.0), (20, 90.0), (30, 10.0)):  # the second of them was disturbed
        clocks.now += seconds
        watch.lap(done)
    assert watch.left(70, {"validation": 2, "checkpoints": 0}) == (pytest.approx(70), False)
    with clock.spend("validation"):
        clocks.now += 5
    assert watch.left(70, {"validation": 2, "checkpoints": 0}) == (pytest.approx(80), True)
    assert watch.seconds == pytest.approx(169)
    assert clock.seconds["validation"] == pytest.approx(5)


@pytest.mark.parametrize("total", [7, 20, 105])
@pytest.mark.parametrize("every", [None, 1, 5, 50])
def test_every_pause_to_come_is_counted(total: int, every: int | None) -> None:
    config = settings(eval_every=every)
    interval = config.every("eval", total)
    due = [step for step in range(1, total + 1) if step % interval == 0 or step == total]
    for done in range(1, total + 1):
        assert config.pauses("eval", done, total) == sum(step >= done for step in due)


def test_durations_in_words() -> None:
    seconds = (0.4, 59.6, 190, 7500, 172_800 + 4 * 3600)
    assert [duration(each) for each in seconds] == ["0 s", "1 min 00 s", "3 min 10 s", "2 h 05 min", "2 d 04 h"]


def test_no_time_left_is_shown_before_there_is_anything_to_go_on() -> None:
    said = io.StringIO()
    with Display(Console(file=said, width=200), "pretrain", 100) as display:
        display.update(1, "step 1/100", "loss 3.000", "")
        display.said = float("-inf")
        display.update(50, "step 50/100", "loss 2.000", "over 3 min 10 s left")
    assert said.getvalue().splitlines() == [
        "pretrain: step 1/100 · loss 3.000",
        "pretrain: step 50/100 · loss 2.000 · over 3 min 10 s left",
    ]


# --- pictures ------------------------------------------------------------------------------------------------


def test_csv_and_plots_are_drawn(tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    train(trainer(tmp_path, store, settings(steps=3, eval_every=3)))
    for name in ("loss.png", "loss-zoomed.png", "rates.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "plots").iterdir())) == 3
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    told = [row["loss"] for row in read_metrics(tmp_path) if "loss" in row]
    assert [float(row["loss"]) for row in table if row["loss"]] == told


@pytest.mark.parametrize("values", [[-0.75, -0.4, -0.38], [-0.2, 0.1, 0.3], [0.1, 0.2], [-3.0], [0.0]])
def test_an_axis_rises_and_holds_its_values(values: list[float]) -> None:
    low, high = limits(values, floor=0.0)
    assert low < high
    assert low <= min(values)
    assert max(values) <= high
    assert low == 0 or min(values) < 0


def test_pictures_are_drawn_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    drawn, said = tmp_path / "drawn", list[str]()
    painter = Painter(tmp_path, "tiny")
    painter.command = [sys.executable, "-c", f"open({str(drawn)!r}, 'a').write('x')"]
    for _ in range(5):
        painter.update()
    painter.finish(said.append)
    assert said == []
    assert drawn.read_text() == "xx"
    painter.command = [sys.executable, "-c", "raise SystemExit(3)"]
    painter.finish(said.append)
    (line,) = said
    assert line.startswith("the plots are not drawn (exit code 3); `")
