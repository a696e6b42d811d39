"""Training in float16 with scaled gradients, and what float8 asks for."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import CPU, decoder, figures, losses, same, settings, trainer, weights
from torch import nn

from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.training.config import OptimizerConfig
from leveret.training.float8 import fits_float8, to_float8
from leveret.training.loop import train, train_step

# --- float16 -------------------------------------------------------------------------------------------------


def scale_of(folder: Path) -> float:
    name = (folder / "checkpoints" / "latest").read_text().strip()
    return float(json.loads((folder / "checkpoints" / name / "state.json").read_text())["scaler"]["scale"])


def test_float16_learns_what_float32_learns(tmp_path: Path, store: TokenStore) -> None:
    for precision in ("fp16", "fp32"):
        summary = train(trainer(tmp_path / precision, store, settings(precision=precision)))
    assert summary["dtype"] == "float32"
    half, full = losses(tmp_path / "fp16"), losses(tmp_path / "fp32")
    assert half == pytest.approx(full, rel=0.01)
    assert half != full
    assert scale_of(tmp_path / "fp16") == 65536


def test_bfloat16_stays_close_to_float32(tmp_path: Path, store: TokenStore) -> None:
    """After 200 steps the loss, meant over the last ten, is within 0.5%."""
    found = {}
    for precision in ("bf16", "fp32"):
        config = settings(precision=precision, steps=200, optimizer=OptimizerConfig(lr=0.003))
        train(trainer(tmp_path / precision, store, config))
        found[precision] = sum(losses(tmp_path / precision)[-10:]) / 10
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.005)
    assert found["bf16"] != found["fp32"]
    assert found["fp32"] < losses(tmp_path / "fp32")[0] - 0.5


def test_the_scale_goes_on_where_it_was(tmp_path: Path, store: TokenStore) -> None:
    """After a stop the run takes the same steps, with a scale that has changed since it began."""

    def run(name: str, steps: int) -> Path:
        stage = trainer(tmp_path / name, store, settings(precision="fp16", steps=steps))
        stage.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        train(stage)
        return tmp_path / name

    config = settings(precision="fp16")
    whole = run("whole", 12)
    assert scale_of(whole) == 2.0**12
    stopped = trainer(tmp_path / "stopped", store, config)
    stopped.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)

    class Stop(Exception):
        pass

    def probe(step: int, model: Any) -> dict[str, Any]:
        if step == 8:
            raise Stop
        return {}

    stopped.probe = probe
    with pytest.raises(Stop):
        train(stopped)
    train(trainer(tmp_path / "stopped", store, config))
    assert figures(tmp_path / "stopped") == figures(whole)
    assert same(weights(tmp_path / "stopped"), weights(whole))
    assert scale_of(tmp_path / "stopped") == scale_of(whole)


def test_gradients_that_overflow_cost_a_step_and_half_the_scale(tmp_path: Path, store: TokenStore) -> None:
    run = trainer(tmp_path, store, settings(precision="fp16"))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.01, fused=True)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    loss, norm = train_step(run, optimizer, run.micro_batches(run.batches.batch(0)), 0.01)
    assert math.isfinite(float(loss))
    assert not math.isfinite(float(norm))
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert run.scaler.get_scale() == 2.0**39
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    run.folder = tmp_path / "run"
    train(run)  # nothing is given up for it
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    norms = [row["grad_norm"] for row in rows if "loss" in row]
    assert norms[0] is None, "which JSON has no number for"
    assert norms[-1] is not None


def test_clipping_sees_gradients_as_they_are(tmp_path: Path, store: TokenStore) -> None:
    norms = []
    for precision in ("fp16", "fp32"):
        run = trainer(tmp_path, store, settings(precision=precision, grad_clip=0.1))
        optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0, fused=True)
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        _, norm = train_step(run, optimizer, run.micro_batches(run.batches.batch(0)), 1.0)
        moved = sum(float((p.detach() - b).square().sum()) for p, b in zip(run.model.parameters(), before, strict=True))
        assert math.sqrt(moved) == pytest.approx(0.1, rel=1e-3)
        norms.append(float(norm))
    assert norms[0] == pytest.approx(norms[1], rel=0.01)


# --- float8 --------------------------------------------------------------------------------------------------


def test_float8_needs_a_gpu_that_has_it(tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"fp8 needs an NVIDIA GPU of compute capability 8.9 .* set precision: auto"):
        train(trainer(tmp_path, store, settings(precision="fp8")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3090")
    with pytest.raises(UserError, match="this is NVIDIA GeForce RTX 3090"):
        to_float8(decoder(), torch.device("cuda"))


def test_float8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'leveret\[gpu\]'"):
        to_float8(decoder(), torch.device("cuda"))


def test_float8_takes_the_blocks_layers_of_fitting_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Any] = []
    package = ModuleType("torchao.float8")
    package.convert_to_float8_training = lambda module, **how: converted.append((module, how))  # type: ignore
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(float8=package))
    monkeypatch.setitem(sys.modules, "torchao.float8", package)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    model = decoder(hidden_size=32, intermediate_size=40)
    to_float8(model, torch.device("cuda"))
    ((module, how),) = converted
    assert module is model.layers, "neither the head nor the tables"
    named = {name for name, part in module.named_modules() if how["module_filter_fn"](part, name)}
    assert named == {f"{i}.self_attn.{name}" for i in (0, 1) for name in ("qkv_proj", "o_proj")} | {
        f"{i}.mlp.gate_up_proj" for i in (0, 1)
    }
    assert not fits_float8(nn.Linear(24, 32))
    assert CPU.type == "cpu"
