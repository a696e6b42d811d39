"""Training adapters: what is learnt, saved and gone on with; several ranks; what it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import decoder, figures, losses, same, settings, trainer
from torch import Tensor

from leveret.data.shards import TokenStore
from leveret.model.config import LoraConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import add_lora, split_state
from leveret.posttraining.config import FinetuneConfig
from leveret.training.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, steps_on_disk
from leveret.training.config import OptimizerConfig
from leveret.training.loop import Trainer, set_up, train, train_step
from leveret.training.memory import training_memory
from leveret.training.muon import Muon
from leveret.training.saving import space_needed

LORA = LoraConfig(rank=4, alpha=8, targets=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"])


def tuned(folder: Path, store: TokenStore, **changes: Any) -> Trainer:
    model = decoder()
    add_lora(model, LORA, seed=3)
    return trainer(folder, store, settings(**changes), model=model)


def newest(folder: Path, step: int | None = None) -> Checkpoint:
    found = find_checkpoint(folder / "checkpoints", step)
    assert found is not None
    return found


def frozen() -> dict[str, Tensor]:
    return decoder().state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, store: TokenStore) -> Path:
    """A stage that nobody stopped, twelve steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(tuned(folder, store, keep_last=3))
    return folder


def test_it_learns_and_leaves_the_weights_alone(whole: Path) -> None:
    assert losses(whole)[-1] < losses(whole)[0] - 0.2
    found = newest(whole)
    base, adapters = split_state(found.unmerged(decoder().config))
    assert same(base, frozen())
    assert all(tensor.abs().max() > 0 for tensor in adapters.values())
    merged = found.weights(decoder().config)
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    layers = [f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("self_attn.qkv_proj", "mlp.gate_up_proj")]
    assert changed == {*layers, "layers.0.mlp.down_proj.weight", "layers.1.mlp.down_proj.weight"}
    keys = {name.rpartition("/")[0] for name in found.optimizer()}
    assert keys == adapters.keys(), "no moments of what is frozen"


@pytest.mark.parametrize("kind", ["adamw", "muon", "adamw8bit"])
def test_stopped_and_gone_on_with_it_ends_with_the_same_bits(kind: str, tmp_path: Path, store: TokenStore) -> None:
    optimizer = OptimizerConfig.model_validate({"kind": kind, "lr": 0.01})
    for name in ("whole", "stopped"):
        train(tuned(tmp_path / name, store, optimizer=optimizer, keep_last=3))
    checkpoints = tmp_path / "stopped" / "checkpoints"
    for step in steps_on_disk(checkpoints)[1:]:  # as a kill leaves it: after the first checkpoint
        for path in sorted((checkpoints / f"step-{step:08d}").iterdir()):
            path.unlink()
        (checkpoints / f"step-{step:08d}").rmdir()
    train(tuned(tmp_path / "stopped", store, optimizer=optimizer, keep_last=3))
    one, other = newest(tmp_path / "whole"), newest(tmp_path / "stopped")
    assert same(one.unmerged(decoder().config), other.unmerged(decoder().config))
    assert same(one.optimizer(), other.optimizer())
    assert figures(tmp_path / "whole") == figures(tmp_path / "stopped")


def test_checkpoints_share_the_frozen_weights_and_each_is_whole(whole: Path, tmp_path: Path) -> None:
    folders = [whole / "checkpoints" / f"step-{step:08d}" for step in steps_on_disk(whole / "checkpoints")]
    assert len(folders) == 3
    assert len({(folder / "model.safetensors").stat().st_ino for folder in folders}) == 1
    assert len({open_checkpoint(folder).weights_sha256 for folder in folders}) == 3
    names = load_file(folders[0] / "adapter_model.safetensors")
    assert "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight" in names
    assert not any("k_proj" in name or "qkv" in name for name in names)


def test_damaged_frozen_weights_are_written_anew(tmp_path: Path, store: TokenStore) -> None:
    work = tuned(tmp_path, store, steps=4, eval_every=4)
    train(work)
    damaged = tmp_path / "checkpoints" / "step-00000004" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    train(tuned(tmp_path, store, steps=4, eval_every=4))
    assert same(newest(tmp_path).unmerged(decoder().config), work.model.state_dict())


def test_what_a_validation_asks_is_the_merged_model(tmp_path: Path, store: TokenStore) -> None:
    ids, seen = torch.arange(8)[None], []

    def probe(step: int, model: Decoder) -> dict[str, Any]:
        assert all(layer.mlp.down_proj.merged for layer in model.layers)
        with torch.no_grad():
            seen.append(model(ids))
        return {}

    work = tuned(tmp_path, store, keep_last=3)
    work.probe = probe
    train(work)
    plain = Decoder(work.model.config)
    for step, expected in zip((4, 8, 12), seen, strict=True):
        plain.load_state_dict(newest(tmp_path, step).weights(work.model.config))
        with torch.no_grad():
            assert torch.equal(plain(ids), expected)


def test_muon_sees_each_projections_adapters_for_themselves(tmp_path: Path, store: TokenStore) -> None:
    work = tuned(tmp_path, store, optimizer=OptimizerConfig(kind="muon", lr=0.01))
    optimizer = set_up(work)
    assert isinstance(optimizer, Muon)
    named = {p: name for name, p in work.model.named_parameters()}
    rows = {named[p]: parts for p, parts in optimizer.rows.items()}
    assert rows["layers.0.self_attn.qkv_proj.lora_A"] == [4, 4]
    assert rows["layers.0.self_attn.qkv_proj.lora_B"] == [16, 16]
    assert rows["layers.1.mlp.gate_up_proj.lora_B"] == [24, 24]
    assert len(rows) == 12


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_recomputed_activations_give_the_same_gradients(checkpointing: str, tmp_path: Path, store: TokenStore) -> None:
    found = []
    for kind in ("none", checkpointing):
        work = tuned(tmp_path, store, gradient_checkpointing=kind, grad_clip=None)
        optimizer = set_up(work)
        train_step(work, optimizer, work.micro_batches(work.batches.batch(0)), 0.01)
        found.append(work.model.state_dict())
    assert same(*found)


def test_it_takes_less_memory_and_says_so() -> None:
    config = decoder(hidden_size=64, intermediate_size=128).config
    examples = [{"paths": ["x"]}]
    base = {"steps": 1, "examples": examples}
    full, small = (FinetuneConfig.model_validate(base | more) for more in ({}, {"lora": {"rank": 2}}))
    parts = [training_memory(config, each, 12, 2, torch.float32, torch.device("cpu")) for each in (full, small)]
    model = Decoder(config)
    assert small.lora is not None
    add_lora(model, small.lora, 0)
    model(torch.zeros((1, 4), dtype=torch.int64)).sum().backward()
    held = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert parts[1]["gradients"] == held
    assert parts[1]["optimizer"] == 2 * held
    assert parts[1]["gradients"] < 0.2 * parts[0]["gradients"]
    assert parts[1]["logits"] < parts[0]["logits"], "no gradient of the head"
    assert space_needed(config, small, 1) < space_needed(config, full, 1)


@pytest.mark.parametrize("other", [{"precision": "fp8"}, {"parallel": {"kind": "fsdp"}}])
def test_what_it_does_not_go_with_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lora is not for"):
        FinetuneConfig.model_validate({"steps": 1, "examples": [{"paths": ["x"]}], "lora": {}} | other)
