"""Checkpoints and the optimizer's state: what comes back is what was saved, and what is damaged is passed over."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leveret.data.batches import Batch
from leveret.data.shards import file_sha256
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import (
    Checkpoint,
    Snapshot,
    find_checkpoint,
    open_checkpoint,
    prune,
    steps_on_disk,
    tidy,
    write_checkpoint,
)
from leveret.training.config import OptimizerConfig
from leveret.training.objective import NextToken
from leveret.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from leveret.training.tensorfile import write_tensors

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=12,
    max_position_embeddings=6,
    rope_layout="interleaved",
    attention_bias=True,
)


def decoder(seed: int, config: ModelConfig = CONFIG) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(config)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def save(folder: Path, step: int, **state: Any) -> Checkpoint:
    moments = {"x/step": torch.tensor(float(step))}
    return write_checkpoint(folder, Snapshot.of(decoder(step), moments, {"step": step} | state))


def some_batch(step: int) -> Batch:
    ids = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(step))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def take_steps(model: Decoder, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        loss = NextToken().loss(model, some_batch(step)) / 24
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path, tied: bool) -> None:
    """To the last bit: weights, moments, step counts."""
    config = CONFIG.model_copy(update={"tie_word_embeddings": tied})
    settings = OptimizerConfig(lr=0.01)
    model = decoder(1, config)
    optimizer = make_optimizer(model, settings)
    take_steps(model, optimizer, range(4))
    write_checkpoint(tmp_path, Snapshot.of(model, optimizer_state(model, optimizer), {"step": 4}))
    take_steps(model, optimizer, range(4, 8))

    found = find_checkpoint(tmp_path)
    assert found is not None
    fresh = decoder(2, config)
    fresh.load_state_dict(found.weights(config))
    again = make_optimizer(fresh, settings)
    load_optimizer_state(fresh, again, found.optimizer())
    assert equal(optimizer_state(fresh, again), found.optimizer())
    take_steps(fresh, again, range(4, 8))
    assert equal(fresh.state_dict(), model.state_dict())
    assert equal(optimizer_state(fresh, again), optimizer_state(model, optimizer))


def test_the_optimizer_state_of_another_model_is_refused() -> None:
    model, deeper = decoder(1), decoder(1, CONFIG.model_copy(update={"num_hidden_layers": 3}))
    optimizer = make_optimizer(model, OptimizerConfig())
    take_steps(model, optimizer, range(1))
    with pytest.raises(UserError, match=r"does not fit the model: layers\.2\."):
        load_optimizer_state(deeper, make_optimizer(deeper, OptimizerConfig()), optimizer_state(model, optimizer))


def test_the_optimizer_state_has_a_name_for_every_tensor() -> None:
    model = decoder(1)
    optimizer = make_optimizer(model, OptimizerConfig())
    assert optimizer_state(model, optimizer) == {}
    take_steps(model, optimizer, range(1))
    names = {name for name, _ in model.named_parameters()}
    expected = {f"{name}/{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizer_state(model, optimizer).keys() == expected


@pytest.mark.parametrize("tables", [True, False])
def test_matrices_alone_are_decayed(tables: bool) -> None:
    model = decoder(1, CONFIG.model_copy(update={"position": "learned", "tie_word_embeddings": False, "norm": "layer"}))
    settings = OptimizerConfig(weight_decay=0.3, lr=0.02, betas=(0.8, 0.9), eps=1e-6, decay_embeddings=tables)
    optimizer = make_optimizer(model, settings)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = not name.endswith("bias") and "norm" not in name
        expected = 0.3 if matrix and (tables or not name.startswith("embed_")) else 0.0
        assert decay[id(parameter)] == expected, name
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.8, 0.9), 1e-6)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "pretrain" / "checkpoints"
    model = decoder(7)
    torch.manual_seed(123)
    torch.rand(5)
    moments = {"a/b": torch.arange(6).view(2, 3).t()}
    saved = write_checkpoint(folder, Snapshot.of(model, moments, {"step": 500, "loss": 2.5}, "name: tiny\n"))
    expected = torch.rand(3)
    found = open_checkpoint(folder / "step-00000500")
    assert found == saved
    assert (found.step, found.state) == (500, {"step": 500, "loss": 2.5})
    assert equal(found.weights(CONFIG), model.state_dict())
    assert equal(found.optimizer(), {"a/b": torch.arange(6).view(2, 3).t()})
    torch.manual_seed(0)
    found.restore_random()
    assert torch.equal(torch.rand(3), expected)
    assert (folder / "latest").read_text() == "step-00000500\n"
    assert (found.folder / "recipe.yaml").read_text() == "name: tiny\n"
    on_disk = load_file(found.folder / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight" in on_disk
    assert "lm_head.weight" not in on_disk


def test_the_manifest_hashes_every_file(tmp_path: Path) -> None:
    one, same, other = save(tmp_path / "a", 1), save(tmp_path / "b", 1), save(tmp_path / "a", 2)
    manifest = json.loads((one.folder / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert {*manifest["files"], "manifest.json"} == {path.name for path in one.folder.iterdir()}
    assert one.weights_sha256 == same.weights_sha256 == manifest["files"]["model.safetensors"]
    assert one.weights_sha256 != other.weights_sha256


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES: list[Callable[[Path], object]] = [flip_last_bit, cut_short, Path.unlink, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES, ids=["flipped", "cut", "missing", "empty"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], object]
) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    damage(tmp_path / "step-00000030" / name)
    with caplog.at_level(logging.WARNING, logger="leveret"):
        found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 20
    assert equal(found.weights(CONFIG), decoder(20).state_dict())
    assert len(caplog.records) == 1
    assert "step-00000030" in caplog.text
    assert "one before it" in caplog.text
    with pytest.raises(UserError, match="step-00000030"):
        find_checkpoint(tmp_path, 30)


def test_when_none_is_whole_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "nowhere") is None
    save(tmp_path, 1)
    cut_short(tmp_path / "step-00000001" / "model.safetensors")
    assert find_checkpoint(tmp_path) is None


def test_the_newest_or_the_one_asked_for(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert steps_on_disk(tmp_path) == [9, 20, 100]
    assert [getattr(find_checkpoint(tmp_path, step), "step", None) for step in (None, 9, 20, 21)] == [100, 9, 20, None]


def test_half_written_folders_are_ignored_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10)
    half = tmp_path / ".step-00000020.partial"
    shutil.copytree(tmp_path / "step-00000010", half)  # the process died before the rename
    (half / "left over").write_text("")
    assert steps_on_disk(tmp_path) == [10]
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert not caplog.records
    save(tmp_path, 20)
    assert not half.exists()
    assert "left over" not in [path.name for path in (tmp_path / "step-00000020").iterdir()]
    assert steps_on_disk(tmp_path) == [10, 20]


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001.mine")
    assert steps_on_disk(tmp_path) == [1, 2]
    prune(tmp_path, 2, 1, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001.mine", "step-00000002"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10, loss=1.0)
    save(tmp_path, 10, loss=2.0)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.state["loss"] == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


@pytest.mark.parametrize(
    ("keep_last", "losses", "kept"),
    [
        (2, {}, [40, 50]),
        (2, {20: 1.0, 30: 2.0, 50: 1.5}, [20, 40, 50]),
        (1, {50: 1.0, 10: 2.0}, [50]),
        (3, {7: 0.1, 35: 0.2}, [30, 40, 50]),  # the best of those there are: what was never saved is not waited for
        (1, {7: 0.1, 30: 0.2}, [30, 50]),
        (1, {10: float("nan"), 20: 3.0}, [20, 50]),
        (9, {10: 1.0}, [10, 20, 30, 40, 50]),
    ],
)
def test_prune_keeps_the_last_and_the_best(
    tmp_path: Path, keep_last: int, losses: dict[int, float], kept: list[int]
) -> None:
    for step in (10, 20, 30, 40, 50):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "latest").write_text("step-00000050\n")
    prune(tmp_path, 50, keep_last, losses)
    assert steps_on_disk(tmp_path) == kept
    assert (tmp_path / "latest").exists()
    assert len(list(tmp_path.iterdir())) == len(kept) + 1


def test_what_is_later_than_the_newest_save_is_deleted(tmp_path: Path) -> None:
    """Else a run that has gone back from damaged or bad checkpoints would lose its new ones, and keep those."""
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    save(tmp_path, 25)
    prune(tmp_path, 25, 2, {40: 0.5, 10: 0.7})
    assert steps_on_disk(tmp_path) == [10, 20, 25]


def test_a_kill_while_a_step_is_saved_again_costs_nothing(tmp_path: Path) -> None:
    """Between the two renames neither is in its place."""
    save(tmp_path, 10, loss=1.0)
    (tmp_path / "step-00000010").rename(tmp_path / ".step-00000010.replaced")
    (tmp_path / ".step-00000020.partial").mkdir()
    (tmp_path / ".step-00000005.removed").mkdir()
    tidy(tmp_path)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.state["loss"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


def test_files_are_as_the_safetensors_library_writes_them(tmp_path: Path) -> None:
    """Of every dtype that weights and optimizers have, with no numbers, one and many."""
    tensors = {
        "wide": torch.arange(6), "a": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "none": torch.zeros(0, 3),
        "bytes": torch.arange(7, dtype=torch.uint8), "one": torch.tensor(2.5), "größe": torch.randn(2),
    }  # fmt: skip
    for metadata in (None, {"format": "pt"}):
        digest = write_tensors(tmp_path / "ours", tensors, metadata)
        save_file(tensors, tmp_path / "theirs", metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
        assert digest == file_sha256(tmp_path / "ours")


def test_there_is_no_pickle(tmp_path: Path) -> None:
    names = {path.suffix for path in save(tmp_path, 1).folder.iterdir()}
    assert names == {".safetensors", ".json", ".yaml"}
