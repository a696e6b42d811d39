"""A pickle is planted in place of every file that a run, a model or its data is made of: none is ever executed."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import CONFIG, decoder, save
from test_import import MODELS
from test_shards import some_documents, write

from leveret.data.shards import TokenStore, file_sha256
from leveret.errors import UserError
from leveret.export.gguf_reading import read_gguf
from leveret.export.huggingface import import_model, open_model
from leveret.inference.quantize import WEIGHTS, read_quantised
from leveret.model.lora import LoraConfig, add_lora
from leveret.posttraining.reference import read_reference
from leveret.rundir import read_json, write_json
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from leveret.training.checkpoint import ADAPTER_CONFIG, ADAPTERS, Snapshot, open_checkpoint, write_checkpoint
from leveret.training.sharded import read_shards


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[bytes]:
    """A pickle; the test fails if it was executed. It is known to sing."""
    mark = tmp_path / "executed"
    content = pickle.dumps(Canary(mark))
    pickle.loads(content)
    assert mark.exists()
    mark.unlink()
    yield content
    assert not mark.exists(), "a planted pickle was executed"


def archived(tmp_path: Path) -> bytes:
    """The same as torch.save has it: a pickle in a zip."""
    path = tmp_path / "archived.bin"
    torch.save({"weights": Canary(tmp_path / "executed")}, path)
    raw = path.read_bytes()
    path.unlink()
    return raw


def refused(read: Callable[[], object]) -> None:
    """It is no model: an error in one line, or nothing is found."""
    try:
        found = read()
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    except ValueError as error:
        assert not isinstance(error, pickle.UnpicklingError)  # noqa: PT017
    else:
        assert found is None


def plant(folder: Path, name: str, content: bytes) -> None:
    """In place of a file; where a manifest has its hash, that of the pickle, as a stranger would."""
    (folder / name).write_bytes(content)
    manifest = folder / "manifest.json"
    if name != "manifest.json" and manifest.exists():
        known = read_json(manifest)
        if name in known.get("files", {}):
            known["files"][name] = file_sha256(folder / name)
            write_json(manifest, known)


NAMES = [
    "model.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
    "recipe.yaml",
    "manifest.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_in_a_checkpoint(name: str, canary: bytes, tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    for content in (canary, archived(tmp_path)):
        plant(saved.folder, name, content)

        def read() -> None:
            found = open_checkpoint(saved.folder)
            if name == "random.safetensors":
                found.restore_random()
            if name == "optimizer.safetensors":
                found.optimizer()
            found.weights(CONFIG)

        refused(read)


@pytest.mark.parametrize("name", [ADAPTERS, ADAPTER_CONFIG])
def test_in_adapters(name: str, canary: bytes, tmp_path: Path) -> None:
    model = decoder(1)
    add_lora(model, LoraConfig(rank=2), 0)
    saved = write_checkpoint(tmp_path, Snapshot.of(model, {}, {"step": 1}))
    for content in (canary, archived(tmp_path)):
        plant(saved.folder, name, content)
        refused(lambda: open_checkpoint(saved.folder).weights(CONFIG))


def test_in_shared_parts_of_a_checkpoint(canary: bytes, tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / ".metadata").write_bytes(canary)  # where torch's own format keeps a pickle
    (tmp_path / "step" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(canary)
    with pytest.raises(UserError, match="no whole safetensors file"):
        read_shards(tmp_path / "step", "model")


def test_in_shards(canary: bytes, tmp_path: Path) -> None:
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Canary(tmp_path / "executed")], dtype=object), allow_pickle=True)
    folder = write(tmp_path / "shards", some_documents(8, 1000)).folder
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for content in (canary, objects.read_bytes()):
            path.write_bytes(content)
            with pytest.raises(UserError):
                _ = [TokenStore(folder).split(split) for split in ("train", "validation")]
        path.write_bytes(whole)
    write_json(tmp_path / "reference" / "manifest.json", {"format_version": 1, "key": {}, "files": {"train.npy": "0"}})
    for content in (canary, objects.read_bytes()):
        plant(tmp_path / "reference", "train.npy", content)
        assert read_reference(tmp_path / "reference", {}) is None


FOREIGN = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]


@pytest.mark.parametrize("name", [*FOREIGN, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_in_a_model_of_strangers(name: str, canary: bytes, tmp_path: Path, theirs: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(theirs, folder)
    if name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (folder / "model.safetensors").unlink()
    plant(folder, name, canary)
    with pytest.raises(UserError) as caught:
        import_model(str(folder), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_in_a_model_with_code_of_its_own(canary: bytes, tmp_path: Path, theirs: Path) -> None:
    """Neither a module that config.json names nor pickles beside sound weights are looked at."""
    folder = tmp_path / "model"
    shutil.copytree(theirs, folder)
    config = read_json(folder / "config.json")
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        (folder / name).write_bytes(canary)
    assert open_model(str(folder)).weights()
    write_json(folder / "config.json", config | {"auto_map": {"AutoModelForCausalLM": "modeling.Theirs"}})
    with pytest.raises(UserError, match="runs code of its own, which is not run here"):
        open_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_links_that_lead_out_of_a_models_folder_are_refused(name: str, tmp_path: Path, theirs: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(theirs, folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        import_model(str(folder), tmp_path / "run")


def test_in_quantised_weights_and_gguf(canary: bytes, tmp_path: Path) -> None:
    plant(tmp_path, WEIGHTS, canary)
    facts = {"format_version": 1, "source_sha256": "x", "sha256": file_sha256(tmp_path / WEIGHTS)}
    write_json(tmp_path / "quantised.json", facts)
    refused(lambda: read_quantised(tmp_path, CONFIG, "x"))
    plant(tmp_path, "model.gguf", canary)
    refused(lambda: read_gguf(tmp_path / "model.gguf"))


def test_in_a_tokenizer(canary: bytes, tmp_path: Path) -> None:
    plant(tmp_path, "tokenizer.json", canary)
    refused(lambda: Tokenizer.load(tmp_path))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as transformers saves it."""
    folder = tmp_path_factory.mktemp("strangers") / "theirs"
    MODELS["llama"]().save_pretrained(folder)
    config = TokenizerConfig(kind="bpe", vocab_size=300, special_tokens=["<pad>", "<eos>"], eos_token="<eos>")
    train_tokenizer(config, ["a text of some words"] * 9).save(folder)
    return folder
