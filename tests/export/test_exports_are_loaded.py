"""Folders in transformers' format are models to be asked, ours and others'; which of them chat, their templates say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ENGLISH, GPT2, made_tokenizer, write_run
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import leveret
from leveret.errors import UserError
from leveret.export.gguf import export_gguf
from leveret.export.huggingface import import_model
from leveret.export.write import export_model
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "make the file"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return made_tokenizer("bpe-gpt2", ENGLISH)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("shape", [{"rope_layout": "interleaved"}, GPT2, {"qk_norm": True}])
def test_an_export_answers_as_its_run(stage: str, shape: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tokenizer, stage, **shape)
    export_model(str(run), tmp_path / "exported")
    ours, theirs = leveret.load(str(run), "cpu"), leveret.load(str(tmp_path / "exported"), "cpu")
    assert ours.complete(["make the file", "x"]) == theirs.complete(["make the file", "x"])
    assert (theirs.stage, theirs.chats) == (stage, stage == "finetune")
    assert theirs.recipe.generation == ours.recipe.generation
    again = import_model(str(tmp_path / "exported"), tmp_path / "again")
    assert leveret.load(str(again.path), "cpu").chats == (stage == "finetune")


def test_the_folder_that_one_is_in_can_be_exported_to(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", tokenizer)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_model(str(run), Path())
    assert (tmp_path / "here" / "config.json").exists()
    assert "from_pretrained('here')" in (tmp_path / "here" / "README.md").read_text()


def save_theirs(folder: Path, tokenizer: Tokenizer, sizes: dict[str, Any], **said: Any) -> Path:
    """A model that transformers saves, with a tokenizer and a generation_config.json."""
    torch.manual_seed(1)
    kind, config = (GPT2LMHeadModel, GPT2Config) if "n_embd" in sizes else (LlamaForCausalLM, LlamaConfig)
    kind(config(vocab_size=tokenizer.vocab_size, **sizes)).save_pretrained(folder, max_shard_size="50KB")
    tokenizer.save(folder)
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA["max_position_embeddings"] = 96
OF_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}


@pytest.mark.parametrize("sizes", [LLAMA, OF_GPT2])
@pytest.mark.parametrize("template", [None, "chatml"])
def test_a_model_of_others_chats_if_it_has_a_template(
    sizes: dict[str, Any], template: str | None, tmp_path: Path
) -> None:
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH, template)
    folder = save_theirs(tmp_path / "theirs", tokenizer, sizes)
    run = import_model(str(folder), tmp_path / "run")
    export_model(str(run.path), tmp_path / "again")
    export_gguf(str(run.path), tmp_path / "again.gguf")
    assert ("apply_chat_template" in (tmp_path / "again" / "README.md").read_text()) == (template is not None)
    assert ("range .Messages" in (tmp_path / "again.Modelfile").read_text()) == (template is not None)
    for reference in (folder, run.path, tmp_path / "again", tmp_path / "again.gguf"):
        model = leveret.load(str(reference), "cpu")
        assert model.chats == (template is not None)
        plain = tokenizer.encode(ASKED[0]["content"])
        asked = render(tokenizer, ASKED, add_generation_prompt=True).ids if template else plain
        assert model.encode(ASKED[0]["content"]) == asked
        assert model.prompt_ids(ASKED) == asked
        assert model.encode(ASKED[0]["content"], raw=True) == plain


def test_a_folder_says_how_it_samples_and_can_be_loaded_in_fewer_bits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "eos_token_id": [2, 3]}
    folder = save_theirs(tmp_path / "theirs", tokenizer, LLAMA, **said)
    drawn = SamplingConfig(temperature=0.6, top_p=0.9, top_k=50, repetition_penalty=1.1)
    assert leveret.load(str(folder), "cpu").recipe.generation == drawn
    assert import_model(str(folder), tmp_path / "run").recipe().generation == drawn
    half = leveret.load(str(folder), "cpu", dtype="bfloat16")
    assert half.engine.dtype == torch.bfloat16
    assert half.complete(["x"], max_new_tokens=3)[0].tokens
    packed = leveret.load(str(folder), "cpu", quantize="int8")
    assert isinstance(packed.engine, Engine)
    assert "int8" in {str(each.dtype).removeprefix("torch.") for each in packed.engine.model.buffers()}
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": -1}))
    with pytest.raises(UserError, match=r"generation_config.json: temperature"):
        leveret.load(str(folder), "cpu")
    (folder / "generation_config.json").write_text('{"leveret_sampling": {"self": 1}}')
    with pytest.raises(UserError, match="no sampling option 'self'"):
        leveret.load(str(folder), "cpu")
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3}')
    assert leveret.load(str(folder), "cpu").recipe.generation == SamplingConfig()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    with pytest.raises(UserError, match="architectures Other is not one of"):
        leveret.load(str(folder), "cpu")
