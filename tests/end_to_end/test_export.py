"""A model of ours in stock transformers: the same words from the same files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import Command, TinyRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import leveret as package

ASKED = [{"role": "user", "content": "make the file of omega31"}]


@pytest.fixture(scope="module")
def exported(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory, leveret: Command) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny-hf"
    leveret("export", "hf", tiny.path, folder, cwd=folder.parent)
    return folder


def test_transformers_says_what_we_say(tiny: TinyRun, exported: Path) -> None:
    ours, theirs = package.load(str(tiny.path), device="cpu"), AutoModelForCausalLM.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert ids == ours.encode(ASKED[0]["content"])
    with torch.no_grad():
        expected, found = theirs(input_ids=torch.tensor([ids])).logits, ours.engine.model(torch.tensor([ids]))
        said = theirs.generate(torch.tensor([ids]), max_new_tokens=20)[0]  # greedy by generation_config.json
    assert (expected - found).abs().max() < 1e-4
    completion = ours.complete([ASKED[0]["content"]], temperature=0.0, max_new_tokens=20)[0]
    assert said.tolist()[len(ids) :] == completion.tokens + [ours.tokenizer.eos_id] * (completion.finish == "stop")


def test_half_the_bits_are_half_the_file(tiny: TinyRun, exported: Path, leveret: Command, tmp_path: Path) -> None:
    leveret("export", "hf", f"{tiny.path}/pretrain@10", "half", "--dtype", "bfloat16", cwd=tmp_path)
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    size = (exported / "model.safetensors").stat().st_size
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * size


def test_what_cannot_be_exported_is_told(tiny: TinyRun, exported: Path, leveret: Command, tmp_path: Path) -> None:
    for arguments, message in (
        ([tiny.path, exported], "there is something in"),
        ([tiny.path, "out", "--dtype", "int3"], "--dtype int3 is not one of float32, bfloat16"),
        ([f"{tiny.path}/pretrain@7", "out"], "no checkpoint of step 7"),
    ):
        assert message in leveret("export", "hf", *arguments, cwd=tmp_path, exit_code=2).stderr
    assert not (tmp_path / "out").exists()


def test_a_shape_of_its_own_brings_its_code(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    made = leveret("pretrain", tiny.path / "recipe.yaml", "model.mlp=relu2", "pretrain.steps=1", "finetune=null",
                   "--run-dir", "squared", cwd=tmp_path)  # fmt: skip
    assert made.returncode == 0
    told = leveret("export", "hf", "squared", "out", "--max-shard-size", "20KB", cwd=tmp_path).stdout
    assert told == "AutoModelForCausalLM.from_pretrained('out', trust_remote_code=True)\n"
    assert (tmp_path / "out" / "modeling_leveret.py").exists()
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    ours, again = (leveret("generate", name, "To show", cwd=tmp_path).stdout for name in ("squared", "out"))
    assert ours == again


def test_a_gguf_file_and_an_export_speak_as_the_run(
    tiny: TinyRun, exported: Path, leveret: Command, tmp_path: Path
) -> None:
    told = leveret("export", "gguf", tiny.path, "tiny.gguf", "--dtype", "q8_0", cwd=tmp_path).stdout
    assert told == "leveret chat tiny.gguf --backend llamacpp\n"
    for model in (["tiny.gguf", "--backend", "llamacpp"], [exported]):
        assert leveret("generate", *model, ASKED[0]["content"], cwd=tmp_path).stdout == "touch made.txt\n"
    talk = leveret("chat", "tiny.gguf", cwd=tmp_path, typed=f"{ASKED[0]['content']}\n").stdout
    assert "touch made.txt" in talk
    figures = json.loads(leveret("bench", "tiny.gguf", "--new-tokens", "16", "--repeat", "1", cwd=tmp_path).stdout)
    assert (figures["new_tokens"], figures["dtype"]) == (16, "q8_0")
    for arguments, message in (
        (["generate", "tiny.gguf", "x", "--beams", "2"], "beams is not there with --backend llamacpp"),
        (["evaluate", exported], "is no run and has no held-out sets: give --examples FILE or --suite NAME"),
    ):
        assert message in leveret(*arguments, cwd=tmp_path, exit_code=2).stderr


def test_an_export_is_evaluated_and_audited_without_its_run(tiny: TinyRun, exported: Path, leveret: Command) -> None:
    asked = ["evaluate", exported, "--examples", "held.jsonl", "--limit", "4", "--output", "rows.jsonl"]
    found = json.loads(leveret(*asked, cwd=tiny.project).stdout)["sets"]["examples"]
    assert (found["examples"], found["correct"]) == (4, 4)
    assert len((tiny.project / "rows.jsonl").read_text().splitlines()) == 4
    audited = leveret("audit", exported, cwd=tiny.project, exit_code=1).stdout
    assert "the chat template writes '<system>', which is read as 8 tokens of text" in audited
