"""The five reference models and the quickstart in transformers: the same words, the same logits, their cards' use."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import CONTEXT, REMOTE, TOKENIZERS, Small, write_small
from tiny_models import ENGLISH, made_tokenizer, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import leveret
from leveret.errors import UserError
from leveret.export.huggingface import import_model
from leveret.export.write import MODELLING, export_model

PROMPTS = [
    f"{verb} {what}" for verb in ("show", "make", "find", "12 + 5 =") for what in ("a", "file", "-name", "é", "")
]
NEW = 64


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modelling files that transformers copies stay in a folder of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="module", params=TOKENIZERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return write_small(request.param, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(small: Small) -> Path:
    folder = small.path.with_name("exported")
    assert export_model(str(small.path), folder) == (small.name in REMOTE)
    return folder


@pytest.fixture(scope="module")
def theirs(small: Small, exported: Path) -> Any:
    """transformers' model."""
    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=small.name in REMOTE).eval()


def test_the_same_words_and_logits(small: Small, exported: Path, theirs: Any) -> None:
    ours = leveret.load(str(small.path), "cpu")
    ids = [ours.encode(prompt, raw=True) for prompt in PROMPTS]
    assert len(ids) == 20
    done = ours.complete(PROMPTS, raw=True, temperature=0.0, repetition_penalty=1.0, max_new_tokens=NEW)
    longest = max(map(len, ids))
    rows = torch.zeros(len(ids), longest, dtype=torch.long)
    seen = torch.zeros_like(rows)
    for row, mask, each in zip(rows, seen, ids, strict=True):  # in one batch, padded on the left
        row[longest - len(each) :], mask[longest - len(each) :] = torch.tensor(each), 1
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": NEW, "pad_token_id": 0}
    said = theirs.generate(rows, attention_mask=seen, **greedy)[:, longest:].tolist()
    for found, expected in zip(said, done, strict=True):
        end = [ours.tokenizer.eos_id] * (expected.finish == "stop")
        assert found[: len(expected.tokens) + len(end)] == expected.tokens + end
    row = torch.tensor([(ids[1] * CONTEXT)[:CONTEXT]])
    with torch.no_grad():
        expected, found = ours.engine.model(row), theirs(row).logits
        assert theirs(row, logits_to_keep=1).logits.shape[1] == 1
        step = theirs(row[:, 60:61], past_key_values=theirs(row[:, :60], use_cache=True).past_key_values).logits
    assert (expected - found).abs().max() < 1e-4
    assert (expected[:, 60] - step[:, 0]).abs().max() < 1e-4


def test_it_is_read_back_without_its_code(small: Small, exported: Path) -> None:
    ours, again = leveret.load(str(small.path), "cpu"), leveret.load(str(exported), "cpu")
    greedy = {"temperature": 0.0, "max_new_tokens": 20}
    assert again.complete(PROMPTS[:4], **greedy) == ours.complete(PROMPTS[:4], **greedy)
    assert (again.stage, again.chats) == (small.stage, small.stage == "finetune")


def test_it_learns(theirs: Any) -> None:
    """Labels give a loss whose gradient reaches every weight."""
    row = torch.arange(12)[None] % theirs.config.vocab_size
    loss = theirs(row, labels=row).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(weight.grad is not None for weight in theirs.parameters())
    theirs.zero_grad()


def test_generation_stays_within_the_context(small: Small, exported: Path, theirs: Any) -> None:
    """transformers does not slide its window; smallm's 10,240 tokens would run off its table of positions."""
    said = json.loads((exported / "generation_config.json").read_text())
    assert ("max_length" in said) != ("max_new_tokens" in said)
    assert theirs.generate(torch.tensor([[5, 6, 7]]), pad_token_id=0).shape[1] <= CONTEXT
    assert (
        leveret.load(str(exported), "cpu").recipe.generation == leveret.load(str(small.path), "cpu").recipe.generation
    )


# -- what the cards say ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a recipe's small export, made once each."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("cards")

    def of(name: str) -> Path:
        if name not in made:
            made[name] = folder / f"{name}-hf"
            export_model(str(write_small(name, folder).path), made[name])
        return made[name]

    return of


def test_parchments_snippet(published: Any) -> None:
    folder = published("parchment-166m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(inputs["input_ids"][0]) == "user\nWhat is the capital of France?<eos>\nassistant\n"
    out = model.generate(**inputs, max_new_tokens=100, do_sample=False, repetition_penalty=1.1)
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    expected = leveret.load(str(folder), "cpu").complete([messages[0]["content"]], max_new_tokens=100)[0]
    assert said == expected.tokens + [tokenizer.eos_token_id] * (expected.finish == "stop")


def test_l20s_snippet(published: Any) -> None:
    folder = published("l20-edu-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("Photosynthesis is", return_tensors="pt")
    given = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
    torch.manual_seed(3)
    first = model.generate(**inputs, **given)
    torch.manual_seed(3)
    by_file = model.generate(**inputs, max_new_tokens=30)  # generation_config.json says the same
    assert torch.equal(first, by_file)
    assert tokenizer.decode(first[0]).startswith("Photosynthesis is")


def test_smallms_chat(published: Any) -> None:
    """A prompt on a terminal, temperature 0.7 and top-k 50; the penalty of the last 64 tokens is our engine's alone."""
    folder = published("smallm-20m")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "Human: Hello\nAssistant:"
    inputs = tokenizer(text, return_tensors="pt")
    out = model.generate(**inputs, do_sample=True, temperature=0.7, top_k=50)
    assert inputs["input_ids"].shape[1] < out.shape[1] <= CONTEXT
    ours = leveret.load(str(folder), "cpu")
    drawn = ours.recipe.generation
    assert (drawn.temperature, drawn.top_k, drawn.repetition_window, drawn.max_new_tokens) == (0.7, 50, 64, 10_240)
    assert ours.complete(["Hello"], max_new_tokens=2 * CONTEXT, seed=1)[0].tokens  # and past its context


def test_tinyllms_command(published: Any) -> None:
    folder = published("tinyllm-cli-67m")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "show a file"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<instruction>\nshow a file\n\n<command>\n"
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    ours = leveret.load(str(folder), "cpu")
    assert inputs["input_ids"][0].tolist() == ours.encode("show a file")
    expected = ours.complete(["show a file"], max_new_tokens=64)[0]
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert said == expected.tokens + [tokenizer.eos_token_id] * (expected.finish == "stop")


@pytest.mark.parametrize("name", ["quickstart", "parchment-166m", "gpt2-124m"])
def test_the_cards_own_snippet_runs(name: str, published: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = published(name)
    text = (folder / "README.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert repr(folder.name) in code
    exec(code.replace(repr(folder.name), repr(str(folder))), {})
    asked = "..." if "apply_chat_template" in code else "Once upon a time"
    model = leveret.load(str(folder), "cpu")
    said = capsys.readouterr().out.strip().rstrip("\ufffd")
    assert said
    if model.recipe.generation.temperature == 0:  # ours goes on past the context
        assert model.generate(asked).strip().startswith(said)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2-124m", "smallm-20m"])
def test_files_of_at_most_a_size(name: str, dtype: str, tmp_path: Path) -> None:
    small, remote = write_small(name, tmp_path), name in REMOTE
    export_model(str(small.path), tmp_path / "whole", dtype)
    export_model(str(small.path), tmp_path / "cut", dtype, "60KB")
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert len(files) > 1
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(path.stat().st_size for path in files) - sum(map(header, files))
    cut, whole = (
        AutoModelForCausalLM.from_pretrained(tmp_path / each, trust_remote_code=remote) for each in ("cut", "whole")
    )
    assert cut.dtype == getattr(torch, dtype)
    assert all(torch.equal(a, b) for a, b in zip(cut.parameters(), whole.parameters(), strict=True))
    row = torch.tensor([[5, 6, 7, 8]])
    expected = leveret.load(str(tmp_path / "cut"), "cpu", dtype=dtype).engine.model(row)
    assert (cut(row).logits - expected).abs().max() < (1e-4 if dtype == "float32" else 0.2)


def header(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize("size", ["5", "-1GB", "0MB", "many"])
def test_a_size_that_is_none(size: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--max-shard-size {size} is no size"):
        export_model("run", tmp_path / "out", max_shard_size=size)


EVERYTHING = {
    "residual_scales": True, "value_residual": True, "value_embeddings": True, "logit_softcap": 5.0,
    "sliding_window": 9, "window_pattern": "SL", "rope_fraction": 0.5, "qk_norm": True, "mlp": "relu2",
    "rope_layout": "interleaved", "num_hidden_layers": 4,
}  # fmt: skip


OTHER = {"tie_word_embeddings": False, "mlp": "gelu", "norm": "layer", "attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("shape", [EVERYTHING, EVERYTHING | OTHER])
def test_every_knob_of_the_decoder(shape: dict[str, Any], tmp_path: Path) -> None:
    """What no class of transformers' has, ours has; with windows shorter than the text, step by step as at once."""
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH)
    run = write_run(tmp_path / "run", tokenizer, **shape)
    export_model(str(run), tmp_path / "out")
    ours = leveret.load(str(run), "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    ids = ours.encode(PROMPTS[7] * 4, raw=True)
    with torch.no_grad():
        assert (ours.engine.model(torch.tensor([ids])) - theirs(torch.tensor([ids])).logits).abs().max() < 1e-4
    said = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)[0, len(ids) :].tolist()
    done = ours.complete([PROMPTS[7] * 4], raw=True, max_new_tokens=40)[0]
    assert said == done.tokens + [ours.tokenizer.eos_id] * (done.finish == "stop")
    again = leveret.load(str(tmp_path / "out"), "cpu").complete([PROMPTS[7] * 4], raw=True, max_new_tokens=40)[0]
    assert again.tokens == done.tokens


@pytest.mark.parametrize("name", sorted(REMOTE))
def test_there_and_back_is_exact_and_runs_no_code(name: str, published: Any, tmp_path: Path) -> None:
    """A folder's modelling file may be anybody's: we never run it."""
    folder = tmp_path / "strange"
    shutil.copytree(published(name), folder)
    (folder / "modeling_leveret.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    run = import_model(str(folder), tmp_path / "run")
    export_model(str(run.path), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "modeling_leveret.py").read_bytes() == MODELLING.read_bytes()
    assert not (tmp_path / "canary").exists()
    facts = json.loads((folder / "config.json").read_text())
    for key, value in (("residual", "sideways"), ("num_hidden_layers", 10**9), ("max_position_embeddings", 2**40)):
        (folder / "config.json").write_text(json.dumps(facts | {key: value}))
        with pytest.raises(UserError, match=key if key != "num_hidden_layers" else "layers"):
            leveret.load(str(folder), "cpu")
