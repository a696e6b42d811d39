"""Models that transformers has saved become runs that give the same logits and words, and the same bits back."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from tiny_project import Command
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from unruly_server import COMMIT, UnrulyHub

from leveret.api import load_model
from leveret.errors import UserError
from leveret.export.huggingface import import_model
from leveret.export.write import export_model
from leveret.planning.describe import describe_recipe
from leveret.recipe import load_recipe
from leveret.rundir import RunDir
from leveret.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from leveret.training.checkpoint import find_checkpoint, steps_on_disk
from leveret.training.metrics import read_metrics

VOCABULARY = 340
TEXTS = [
    "To show a file type cat; to make one type touch, many times over.",
    "user\nmake the file of number\nassistant\ntouch it",
] * 9
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY + 4, "hidden_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 96}
GPT2_SIZES = {"vocab_size": VOCABULARY + 4, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-5)),
    "llama, tied, biases, other base": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 777.0},
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7)),
    "mistral without a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=12)),
    "qwen3, some windows": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
    "gpt2, untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, tie_word_embeddings=False, n_inner=40)),
}
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders of models as transformers saves them, with a tokenizer."""
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    config = TokenizerConfig(kind="bpe", vocab_size=VOCABULARY, special_tokens=special, eos_token="<eos>")
    tokenizer = train_tokenizer(config, TEXTS)
    found: dict[tuple[str, str], Path] = {}

    def make(name: str, shard: str = "1GB") -> Path:
        if (name, shard) not in found:
            folder = tmp_path_factory.mktemp("theirs") / "theirs"
            model = MODELS[name]()
            random_weights(model, seed=3)
            model.save_pretrained(folder, max_shard_size=shard)
            tokenizer.save(folder)
            found[name, shard] = folder
        return found[name, shard]

    return make


def random_weights(model: PreTrainedModel, seed: int) -> None:
    """Every tensor, biases and norms too, is drawn, so that none can be mistaken for another or left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + (parameter.dim() == 1))


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a model with another config.json."""
    to.mkdir(parents=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    facts = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({key: value for key, value in facts.items() if value != "gone"}))
    return to


def theirs_of(folder: Path) -> PreTrainedModel:
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    classes = [LlamaForCausalLM, MistralForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel]
    loaded: PreTrainedModel = {each.__name__: each for each in classes}[kind].from_pretrained(folder)
    return loaded.eval()


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_says_what_it_said(name: str, made: Made, tmp_path: Path) -> None:
    folder = made(name)
    run = import_model(str(folder), tmp_path / "run")
    theirs, ours = theirs_of(folder), load_model(str(run.path), "cpu")
    ids = torch.arange(128).view(2, 64) * 7 % VOCABULARY
    with torch.no_grad():
        expected, found = theirs(input_ids=ids).logits, ours.engine.model(ids)
    assert expected.std() > 0.1
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    prompt = ours.tokenizer.encode("To show a file")
    asked = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 1}
    asked["suppress_tokens"] = list(range(ours.tokenizer.vocab_size, VOCABULARY + 4))  # rows that pad the table
    with torch.no_grad():
        full = theirs.generate(torch.tensor([prompt]), **asked)[0]
    said = ours.complete(["To show a file"], raw=True, temperature=0.0, max_new_tokens=12)[0].tokens
    assert [*prompt, *said] == full.tolist()[: len(prompt) + len(said)]
    assert len(said) == 12 or full.tolist()[len(prompt) + len(said)] == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_there_and_back_keeps_every_bit(name: str, dtype: torch.dtype, made: Made, tmp_path: Path) -> None:
    folder = copied(made(name), tmp_path / "theirs")
    before = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(before, folder / "model.safetensors", {"format": "pt"})
    run = import_model(str(folder), tmp_path / "run")
    found = find_checkpoint(run / "pretrain" / "checkpoints")
    assert found is not None
    after = load_file(found.folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key].to(dtype), before[key]) for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_what_was_imported(name: str, made: Made, tmp_path: Path) -> None:
    folder = made(name)
    run = import_model(str(folder), tmp_path / "run")
    export_model(str(run.path), tmp_path / "ours")
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ids = torch.arange(128).view(2, 64) * 7 % VOCABULARY
    with torch.no_grad():
        assert torch.equal(theirs_of(folder)(input_ids=ids).logits, theirs_of(tmp_path / "ours")(input_ids=ids).logits)


def test_shards_and_names_without_a_prefix_are_read_too(made: Made, tmp_path: Path) -> None:
    sharded = made("llama", "20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one = import_model(str(sharded), tmp_path / "sharded")
    bare = copied(made("llama"), tmp_path / "theirs")
    tensors = load_file(bare / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    assert weights_of(import_model(str(bare), tmp_path / "bare")) == weights_of(one)
    hub = copied(made("gpt2"), tmp_path / "hub")  # as GPT-2 is on the hub
    tensors = load_file(hub / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "lm_head.weight": tensors["wte.weight"].clone()}
    save_file(tensors, hub / "model.safetensors", {"format": "pt"})
    plain = import_model(str(made("gpt2")), tmp_path / "plain")
    assert weights_of(import_model(str(hub), tmp_path / "from-hub")) == weights_of(plain)


def weights_of(run: RunDir) -> str:
    found = find_checkpoint(run / "pretrain" / "checkpoints")
    assert found is not None
    return found.weights_sha256


def test_the_run_says_where_it_is_from_and_roles_come_from_the_ids(made: Made, tmp_path: Path) -> None:
    folder = copied(made("gpt2"), tmp_path / "theirs", eos_token_id=1, bos_token_id=None)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    del facts["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"chat_template": "{{ messages }}"}))
    run = import_model(str(folder), tmp_path / "run")
    known = json.loads((run / "imported.json").read_text())
    assert (known["source"], known["revision"], known["architecture"]) == (str(folder), None, "GPT2LMHeadModel")
    others = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(known["files"]) == {"model.safetensors", *others}
    tokenizer = load_model(str(run.path), "cpu").tokenizer
    assert (tokenizer.eos_id, tokenizer.bos_id) == (1, None)
    assert tokenizer.chat_template == "{{ messages }}"
    with pytest.raises(UserError, match="is a run already"):
        import_model(str(folder), tmp_path / "run")


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "scaling of type llama3"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "scaling of type linear"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act gelu .* the decoder has silu"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map .* code of its own"),
    ("llama", {"architectures": ["Gemma2ForCausalLM"]}, "architectures Gemma2ForCausalLM"),
    ("llama", {"architectures": ["Qwen2ForCausalLM"]}, "biases on q, k and v alone"),
    ("llama", {"num_hidden_layers": 1}, "have model.layers.1.*no place"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is more than"),
    ("llama", {"num_hidden_layers": 1000}, "1000 layers, and there are 21 tensors in all"),
    (
        "llama",
        {"num_attention_heads": 2**63, "num_key_value_heads": 1, "head_dim": 2},
        "num_attention_heads .* is more",
    ),
    ("llama", {"vocab_size": 2**63}, "vocabulary 9223372036854775808 is more"),
    ("llama", {"vocab_size": None}, "has no vocab_size"),
    ("llama", {"architectures": True}, "architectures True is not one of"),
    ("llama", {"architectures": {"a": 1}}, "architectures {'a': 1} is not one of"),
    ("llama", {"architectures": [["LlamaForCausalLM"]]}, "is not one of"),
    ("llama", {"max_position_embeddings": 10**12}, "max_position_embeddings 10{12} is more"),
    ("llama", {"intermediate_size": 64}, r"size \[48, 32\], and config.json makes it \[64, 32\]"),
    ("llama", {"num_attention_heads": 3}, "num_key_value_heads 2 does not divide"),
    ("llama", {"num_hidden_layers": "two"}, "num_hidden_layers"),
    ("llama", {"attention_bias": True}, "weights have no .*bias"),
    ("llama", {"intermediate_size": "gone"}, "has no intermediate_size"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight is not the embedding"),
    ("llama, tied, biases, other base", {"tie_word_embeddings": False}, "weights have no lm_head.weight"),
    ("llama", {"vocab_size": 261}, r"the tokenizer has \d+ tokens, the model only 261"),
    ("mistral", {"sliding_window": "gone"}, "has no sliding_window"),
    ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": True}, "layer_types True"),
    ("qwen3", {"layer_types": [[1], [2]]}, "layer_types"),
    ("qwen3", {"layer_types": None, "max_window_layers": "1"}, "max_window_layers 1 is no number"),
    ("gpt2", {"n_embd": {}}, "hidden_size"),
    ("gpt2", {"n_embd": None}, "has no n_embd"),
    ("gpt2", {"activation_function": "relu"}, "activation_function relu"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSALS)
def test_what_the_decoder_has_not_is_refused_by_key(
    name: str, changes: dict[str, Any], said: str, made: Made, tmp_path: Path
) -> None:
    folder = copied(made(name), tmp_path / "theirs", **changes)
    with pytest.raises(UserError, match=said):
        import_model(str(folder), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"sliding_window": 5}),
    ("mistral", {"layer_types": ["full_attention", "full_attention"]}),
    ("qwen3", {"sliding_window": 5, "layer_types": "gone", "use_sliding_window": "gone"}),
    ("qwen3", {"sliding_window": 5, "layer_types": "gone", "use_sliding_window": True}),
    ("qwen3", {"sliding_window": 5, "layer_types": "gone", "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {"sliding_window": 5, "layer_types": "gone", "use_sliding_window": True, "max_window_layers": 0}),
]


@pytest.mark.parametrize(("name", "changes"), WINDOWS)
def test_windows_are_where_transformers_has_them(
    name: str, changes: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    """Each class reads its own keys, with defaults of its own; the others' it passes over."""
    folder = copied(made(name), tmp_path / "theirs", **changes)
    ids = torch.arange(40)[None] * 7 % VOCABULARY
    with torch.no_grad():
        found = load_model(str(folder), "cpu").engine.model(ids)
        expected = theirs_of(folder)(input_ids=ids).logits
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The file with another header before the same bytes."""

    def spoil(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return spoil


NORM = "model.norm.weight"
POISON: dict[str, Callable[[bytes], bytes]] = {
    "a header without end": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "a header of nonsense": lambda content: content[:8] + b"[" * 64 + content[72:],
    "a size beyond all memory": _header(lambda header: header[NORM].update(shape=[2**40, 2**20])),
    "a negative size": _header(lambda header: header[NORM].update(shape=[-32])),
    "a place beyond the end": _header(lambda header: header[NORM].update(data_offsets=[2**50, 2**50 + 128])),
    "a place inside another": _header(lambda header: header[NORM].update(data_offsets=[0, 128])),
    "half of the file": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_header_is_refused(name: str, made: Made, tmp_path: Path) -> None:
    folder = copied(made("llama"), tmp_path / "theirs")
    weights = folder / "model.safetensors"
    weights.write_bytes(POISON[name](weights.read_bytes()))
    with pytest.raises(UserError, match="no whole safetensors file"):
        import_model(str(folder), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_tensors_of_another_type_or_size_are_refused(made: Made, tmp_path: Path) -> None:
    for number, (tensor, said) in enumerate(((torch.ones(32).to(torch.int8), "type I8"), (torch.ones(31), r"\[31\]"))):
        folder = copied(made("llama"), tmp_path / f"theirs-{number}")
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {NORM: tensor}, folder / "model.safetensors")
        with pytest.raises(UserError, match=said):
            import_model(str(folder), tmp_path / "run")


def test_an_index_names_only_what_is_beside_it(made: Made, tmp_path: Path) -> None:
    for number, name in enumerate(("../outside.safetensors", "missing.safetensors")):
        folder = copied(made("llama", "20KB"), tmp_path / f"theirs-{number}")
        (tmp_path / "outside.safetensors").write_bytes(b"")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: name}}))
        with pytest.raises(UserError, match=f"'{name}', which is no file beside it"):
            import_model(str(folder), tmp_path / "run")


def test_a_pipe_in_place_of_weights_is_not_waited_for(made: Made, tmp_path: Path) -> None:
    folder = copied(made("llama"), tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        import_model(str(folder), tmp_path / "run")


def test_pickles_and_missing_files_are_told_of_with_a_way_out(made: Made, tmp_path: Path) -> None:
    folder = copied(made("llama"), tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles .* are not read; convert it"):
        import_model(str(folder), tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json .* write one with transformers"):
        import_model(str(folder), tmp_path / "run")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        import_model(str(folder), tmp_path / "run")


def test_a_name_that_the_hub_does_not_know_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'org/none' is no folder here and the hub did not give it"):
        import_model("org/none", tmp_path / "run")


def test_a_hub_that_stops_answering_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own errors are no OSError."""

    def broken(*_: Any, **__: Any) -> None:
        raise HTTPError("read timed out")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(UserError, match=r"the hub did not give it \(HTTPError\)"):
        import_model("org/some", tmp_path / "run")
    with pytest.raises(UserError, match=r"the hub did not give it \(HTTPError\)"):
        load_tokenizer(TokenizerConfig(kind="huggingface", source="org/some"), tmp_path)


# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(made: Made, leveret: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny, imported from a hub, and texts to train it on."""
    folder = tmp_path_factory.mktemp("imported")
    files = {path.name: path.read_bytes() for path in made("llama").iterdir()}
    with UnrulyHub({"org/tiny": {**files, "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x"}}) as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hub"), "NO_PROXY": "*"}
        done = leveret("import", "hf", "org/tiny", cwd=folder, **there)
        asked = {path for method, path, _ in hub.requests if method == "GET"}
    assert "runs/tiny is a run now" in done.stdout
    assert not any("pytorch_model.bin" in path or "onnx" in path for path in asked)
    (folder / "more.txt").write_text("\n".join(TEXTS * 4))
    rows = [json.dumps({"instruction": f"make the file of number {i}", "command": "touch it"}) for i in range(60)]
    (folder / "pairs.jsonl").write_text("\n".join(rows[10:]))
    (folder / "held.jsonl").write_text("\n".join(rows[:10]))
    return folder


def test_an_imported_run_says_where_it_is_from_and_works_like_any_other(imported: Path, leveret: Command) -> None:
    known = json.loads((imported / "runs" / "tiny" / "imported.json").read_text())
    assert (known["source"], known["revision"]) == ("org/tiny", COMMIT)
    said = leveret("generate", "runs/tiny", "To show a file", "--max-new-tokens", "4", cwd=imported).stdout
    assert said.strip()
    assert json.loads(leveret("evaluate", "runs/tiny", cwd=imported).stdout)["loss"] == {}
    assert "tiny" in leveret("runs", cwd=imported).stdout
    recipe = load_recipe(str(imported / "runs" / "tiny" / "recipe.yaml"))[0]
    assert describe_recipe(recipe)["parameters"]["total"] > 0


SHORT = ["steps=6", "batch_size=4", "log_every=1", "checkpoint_every=2", "eval_every=6"]


def test_an_imported_model_is_pretrained_on(imported: Path, leveret: Command) -> None:
    text = [f"data.sources=[{{paths: [{imported}/more.txt]}}]", "data.validation_fraction=0", "data.sequence_length=32"]
    none = leveret("pretrain", "--from", "runs/tiny", cwd=imported, exit_code=2).stderr
    assert "data.sources is empty; say which texts to train on" in none
    leveret("pretrain", *text, *[f"pretrain.{each}" for each in SHORT], "--from", "runs/tiny", cwd=imported)
    steps = [row["step"] for row in read_metrics(imported / "runs/tiny-continued/pretrain") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_its_adapters_are_tuned_and_a_killed_tuning_ends_with_the_same_bits(imported: Path, leveret: Command) -> None:
    examples = f"finetune.examples=[{{paths: [{imported}/pairs.jsonl]}}]"
    held = f"evaluate.sets={{held: {{paths: [{imported}/held.jsonl]}}}}"
    tuning = ["finetune", examples, held, "tokenizer.template=parchment", "finetune.lora={rank: 4}"]
    tuning += [*[f"finetune.{each}" for each in SHORT], "--from", "runs/tiny", "--run-dir"]
    leveret(*tuning, "whole", cwd=imported)
    leveret(*tuning, "killed", cwd=imported, exit_code=137, LEVERET_FAULTS="die@4")
    killed = imported / "killed" / "finetune" / "checkpoints"
    assert steps_on_disk(killed) == [2]
    leveret(*tuning, "killed", cwd=imported)
    last = [imported / name / "finetune" / "checkpoints" / "step-00000006" for name in ("whole", "killed")]
    files = [json.loads((folder / "manifest.json").read_text())["files"] for folder in last]
    assert "adapter_model.safetensors" in files[0]
    assert files[0] | {"state.json": ""} == files[1] | {"state.json": ""}
    base = imported / "runs/tiny/pretrain/checkpoints/step-00000000/model.safetensors"
    assert (last[0] / "model.safetensors").read_bytes() == base.read_bytes()
    results = json.loads(leveret("evaluate", "whole", "--limit", "2", cwd=imported).stdout)
    assert (results["stage"], results["step"]) == ("finetune", 6)
