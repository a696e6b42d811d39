"""Compiled training: the same losses, as many graphs as there are shapes, and never a crash for want of a compiler."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CPU, decoder, losses, settings, trainer

from leveret.data.shards import TokenStore
from leveret.training import dry_run
from leveret.training.graphs import Graphs, cannot_compile
from leveret.training.loop import train
from leveret.training.metrics import read_metrics


def test_compiled_masked_training_compiles_once(tmp_path: Path, packed: TokenStore) -> None:
    """Rows with ever other places to learn from, a validation, a probe of other shapes."""
    assert cannot_compile(CPU) is None, "this test needs a C++ compiler"

    def probe(step: int, model: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {"odd": float(model(torch.zeros((1, step), dtype=torch.int64)).sum())}

    config = settings(steps=10, eval_every=5, document_mask=True, micro_batch_size=4)
    shape = {"num_hidden_layers": 1}
    eager = trainer(tmp_path / "eager", packed, config, probe=probe, model=decoder(**shape))
    eager.validation = eager.batches
    train(eager)
    state = torch.get_rng_state()
    config = config.model_copy(update={"compile": True})
    run = trainer(tmp_path / "compiled", packed, config, probe=probe, model=decoder(**shape))
    run.validation = run.batches
    summary = train(run)
    assert torch.equal(torch.get_rng_state(), state), "compiling draws nothing"
    assert summary["compiled"] is True
    assert (summary["graphs"], summary["recompiles"]) == (1, 0)
    rows = [row for row in read_metrics(tmp_path / "compiled") if "loss" in row]
    assert all((row["graphs"], row["recompiles"]) == (1, 0) for row in rows)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-5)
    validations = [
        [row["validation_loss"] for row in read_metrics(tmp_path / name) if "validation_loss" in row]
        for name in ("compiled", "eager")
    ]
    assert validations[0] == pytest.approx(validations[1], abs=1e-5)
    assert "compiled again" not in run.console.file.getvalue()  # type: ignore[attr-defined]


def test_late_graphs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 7  # by somebody else, before
    monkeypatch.setattr(Graphs, "_counter", lambda self: made)
    graphs = Graphs()
    late = []
    for kind, more in (("dry run", 1), ("step", 1), ("step", 0), ("validation", 1), ("step", 2), ("validation", 1)):
        made += more
        late.append(graphs.note(kind))
    assert late == [0, 0, 0, 0, 2, 1]
    assert (graphs.made, graphs.recompiles) == (6, 3)


def test_without_a_compiler_it_goes_on_without(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/g++"))
    run = trainer(tmp_path, store, settings(compile=True))
    summary = train(run)
    said = run.console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("not compiled: no C++ compiler; g++ or clang would do") == 1
    assert summary["compiled"] is False
    assert "graphs" not in summary
    train(trainer(tmp_path / "eager", store, settings()))
    assert losses(tmp_path) == losses(tmp_path / "eager")


def test_where_compiling_fails_it_goes_on_without(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("this kernel cannot be made\nsecond line")

    monkeypatch.setattr(dry_run, "cannot_compile", lambda device: None)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    run = trainer(tmp_path, store, settings(compile=True))
    try:
        summary = train(run)
    finally:
        torch.compiler.set_stance("default")
    said = " ".join(run.console.file.getvalue().split())  # type: ignore[attr-defined]
    assert said.count("not compiled") == 1
    assert "this kernel cannot be made" in said
    assert summary["compiled"] is False
    train(trainer(tmp_path / "eager", store, settings()))
    assert losses(tmp_path) == losses(tmp_path / "eager")
