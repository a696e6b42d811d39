"""What llama.cpp makes of our GGUF files: the same tokens, the same words, nearly the same probabilities."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from tiny_models import ENGLISH, GPT2, WORLD, made_tokenizer, write_run

import leveret
from leveret.errors import UserError
from leveret.export.gguf import _ours, export_gguf
from leveret.export.source import find_source
from leveret.inference.engine import Engine
from leveret.inference.llamacpp import GgufFile, LlamaEngine, LlamaServer
from leveret.tokenizer.patterns import PROBE_TEXT
from leveret.tokenizer.template import render, template_names
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

DIALOGUE = [
    {"role": "user", "content": " liste les fichiers ⚠️ "},
    {"role": "assistant", "content": "find . -mtime +30"},
    {"role": "user", "content": "and 12  more,\n\nplease <eos>"},
]
SCRIPTS = [(0x20, 0x7F)] * 8 + [(0x01, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700)]
SCRIPTS += [(0x900, 0xA00), (0xE00, 0xE80), (0x2000, 0x2070), (0x20A0, 0x2200), (0x3000, 0x3100), (0x4E00, 0x5000)]
SCRIPTS += [(0xAC00, 0xAD00), (0xFF00, 0xFFF0), (0x1F300, 0x1F700), (0xE000, 0xE010), (0x1D400, 0x1D500)]


def texts(scripts: list[tuple[int, int]], count: int = 400) -> list[str]:
    """Characters of these ranges, drawn one by one, with white space, digits and contractions between them."""
    draw = random.Random(7)

    def text() -> str:
        common = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "12", "1234", "the"]
        ranges = [draw.choice(scripts) for _ in range(draw.randint(1, 30))]
        return "".join(chr(draw.randrange(*span)) if draw.random() < 0.6 else draw.choice(common) for span in ranges)

    return [text() for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


Serve = Callable[[Tokenizer], tuple[LlamaServer, list[str]]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """llama.cpp with a model of a tokenizer, and what the export noted."""

    def start(tokenizer: Tokenizer) -> tuple[LlamaServer, list[str]]:
        run = write_run(tmp_path / "run", tokenizer)
        notes = export_gguf(str(run), tmp_path / "model.gguf", "f32")
        return LlamaServer(GgufFile(tmp_path / "model.gguf", 128, "f32", 0), 1, 128), notes

    return start


def probabilities(engine: LlamaEngine, prompt: list[int]) -> dict[int, float]:
    """The 20 most probable next tokens, and their log-probabilities.

    A letter is chosen in any case: of a token that is no whole character llama.cpp tells none. It tells those before
    its choice was swayed.
    """
    letter = [[engine.tokenizer.encode("t")[0], 1000.0]]
    body = {"prompt": prompt, "n_predict": 1, "n_probs": 20, "temperature": 0.0, "logit_bias": letter}
    place = engine.server(1).ask("/completion", body)["completion_probabilities"][0]
    return {token["id"]: token["logprob"] for token in place["top_logprobs"]}


def cut(server: LlamaServer, text: str, special: bool = False) -> list[int]:
    tokens: list[int] = server.ask("/tokenize", {"content": text, "parse_special": special})["tokens"]
    return tokens


@pytest.mark.parametrize("kind", ["bpe-gpt2", "bpe-cl100k", "smollm", "qwen2", "sentencepiece-bpe"])
def test_text_is_cut_as_ours(kind: str, serve: Serve) -> None:
    tokenizer = made_tokenizer(kind, ENGLISH + WORLD)
    server, notes = serve(tokenizer)
    assert notes == (["llama.cpp reads ▁ (U+2581) in a text as a space"] if kind == "sentencepiece-bpe" else [])
    whole = PROBE_TEXT.replace("\0", "")
    for text in [*whole.splitlines(keepends=True), whole, *ENGLISH[:3], *WORLD[:2], *texts(SCRIPTS), "", "<eos>"]:
        assert cut(server, text) == tokenizer.encode(text), text


def test_words_are_cut_as_ours_where_no_token_is_made_of_parts_of_two_characters(serve: Serve) -> None:
    tokenizer = made_tokenizer("bpe-words", ENGLISH)
    server, notes = serve(tokenizer)
    assert notes == []
    for text in [*PROBE_TEXT.replace("\0", "").splitlines(keepends=True), *WORLD, *texts(SCRIPTS)]:
        assert cut(server, text) == tokenizer.encode(text), text


def test_elsewhere_words_are_cut_as_ours_in_ascii_and_the_rest_is_told(serve: Serve) -> None:
    tokenizer = made_tokenizer("bpe-words", ENGLISH + WORLD)
    server, notes = serve(tokenizer)
    assert "tokens are made of parts of two characters" in notes[0]
    for text in [*ENGLISH, *texts([(0x01, 0x7F)])]:
        assert cut(server, text) == tokenizer.encode(text), text


@pytest.mark.parametrize("template", template_names())
def test_templates_give_the_same_prompts(template: str, serve: Serve) -> None:
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH, template)
    server, _ = serve(tokenizer)
    plain = [{**message, "content": message["content"].replace("<eos>", "")} for message in DIALOGUE]
    prompt = server.ask("/apply-template", {"messages": plain})["prompt"]
    assert prompt == tokenizer.decode(render(tokenizer, plain, add_generation_prompt=True).ids, skip_special=False)
    assert cut(server, prompt, special=True) == tokenizer.encode(prompt, special=True)
    assert tokenizer.encode("<eos>") == cut(server, "<eos>")


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("bpe-gpt2", {}),
    "llama, untied, biases, padded": (
        "bpe-words",
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 777.0,
            "vocab_size": 700,
        },
    ),
    "llama, interleaved": ("sentencepiece-bpe", {"rope_layout": "interleaved", "head_dim": 24}),
    "a window that nothing outgrows": ("bpe-gpt2", {"sliding_window": 128}),
    "qwen3": ("bpe-cl100k", {"qk_norm": True, "head_dim": 24, "rope_layout": "interleaved"}),
    "gpt2": ("bpe-gpt2", GPT2),
    "gpt2, untied, padded": ("bpe-gpt2", GPT2 | {"tie_word_embeddings": False, "vocab_size": 700}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_is_ours_and_probabilities_are_near(name: str, tmp_path: Path) -> None:
    kind, shape = SHAPES[name]
    run = write_run(tmp_path / "run", made_tokenizer(kind, ENGLISH), **shape)
    export_gguf(str(run), tmp_path / "model.gguf", "f32")
    ours, theirs = leveret.load(str(run), "cpu"), leveret.load(str(tmp_path / "model.gguf"))
    assert isinstance(ours.engine, Engine)
    assert isinstance(theirs.engine, LlamaEngine)
    prompts = [ours.encode(text[start:]) for text in ENGLISH[:3] for start in range(8)]
    config = ours.sampling(max_new_tokens=24, temperature=0.0)
    expected = ours.engine.generate(prompts, config)
    assert theirs.engine.generate(prompts, config) == expected
    tolerance = 2e-5 if "gpt2" not in name else 5e-3  # llama.cpp looks GELU up in a table of 16 bits
    for prompt in prompts[:8]:
        with torch.no_grad():
            logits = ours.engine.model(torch.tensor([prompt]))[0, -1, : ours.tokenizer.vocab_size]
        told = probabilities(theirs.engine, prompt)
        assert len(told) == 20
        assert max(abs(value - float(logits.log_softmax(-1)[index])) for index, value in told.items()) < tolerance


def test_fewer_bits_are_smaller_files_and_nearly_as_sure(folder: Path) -> None:
    run = write_run(folder / "run", made_tokenizer("bpe-gpt2", ENGLISH), intermediate_size=80)
    ours = leveret.load(str(run), "cpu")
    assert isinstance(ours.engine, Engine)
    prompt = ours.encode(ENGLISH[0])
    with torch.no_grad():
        expected = ours.engine.model(torch.tensor([prompt]))[0, -1, : ours.tokenizer.vocab_size].log_softmax(-1)
    sizes = []
    for dtype, tolerance in (("f32", 1e-4), ("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.2), ("q4_0", 2.0)):
        path = folder / f"{dtype}.gguf"
        export_gguf(str(run), path, dtype)
        sizes.append(path.stat().st_size)
        engine = leveret.load(str(path)).engine
        assert isinstance(engine, LlamaEngine)
        assert engine.dtype == dtype
        told = probabilities(engine, prompt)
        assert max(abs(value - float(expected[index])) for index, value in told.items()) < tolerance
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] > sizes[4]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(folder / "q4_0.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # 80 is no multiple of 32
    assert kinds["blk.0.attn_norm.weight"] == "F32"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"residual": "parallel"}, "llama.cpp has no architecture for a model with residual: parallel;"),
    ({"mlp": "relu2"}, "with mlp: relu2;"),
    ({"logit_softcap": 30.0}, "with logit_softcap: 30.0;"),
    ({"sliding_window": 16}, "with sliding_window: 16;"),
    ({"qk_norm": True, "attention_bias": True}, "with qk_norm and attention_bias;"),
    (GPT2 | {"head_dim": 24}, "with head_dim: 24;"),
]


@pytest.mark.parametrize(("shape", "message"), REFUSED)
def test_a_shape_that_llama_cpp_has_not_is_refused(shape: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_tokenizer("bpe-gpt2", ENGLISH), **shape)
    with pytest.raises(UserError, match=message):
        export_gguf(str(run), tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_tokenizer_that_llama_cpp_has_not_is_refused(tmp_path: Path) -> None:
    made = made_tokenizer("bpe-gpt2", ENGLISH)
    definition = json.loads(made.definition)
    other = json.loads(made.definition)
    other["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+"
    bare = definition["model"] | {"merges": []}
    for number, (tokenizer, message) in enumerate(
        (
            (made_tokenizer("sentencepiece-unigram", ENGLISH), "as this Unigram tokenizer does"),
            (Tokenizer(json.dumps(other), made.roles), "knows no cut of text like this tokenizer's"),
            (Tokenizer(json.dumps(definition | {"normalizer": {"type": "Lowercase"}}), made.roles), "no normalizer"),
            (Tokenizer(json.dumps(definition | {"model": bare}), made.roles), "reads no tokenizer without merges"),
            (Tokenizer(made.definition, SpecialRoles()), "name the tokenizer's eos_token"),
        )
    ):
        run = write_run(tmp_path / f"run{number}", tokenizer)
        with pytest.raises(UserError, match=message):
            export_gguf(str(run), tmp_path / "model.gguf")
    composed = Tokenizer(json.dumps(definition | {"normalizer": {"type": "NFC"}}), made.roles)
    notes = export_gguf(str(write_run(tmp_path / "composed", composed)), tmp_path / "model.gguf")
    assert "does not compose letters and their accents first" in notes[0]


def test_a_step_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", made_tokenizer("bpe-gpt2", ENGLISH))
    said = _ours(find_source(str(run))) | {"step": float("inf")}
    monkeypatch.setattr("leveret.export.gguf._ours", lambda source: said)
    export_gguf(str(run), tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"cannot be read .* write it again"):
        leveret.load(str(tmp_path / "model.gguf"))


def test_a_file_says_what_it_was_made_from_and_others_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "fennel", made_tokenizer("bpe-words", ENGLISH), "finetune")
    path = tmp_path / "fennel.gguf"
    export_gguf(str(run), path, "q8_0")
    ours, theirs = leveret.load(str(run), "cpu"), leveret.load(str(path), backend="llamacpp")
    assert (theirs.recipe.name, theirs.stage, theirs.step, theirs.chats) == ("fennel", "finetune", 0, True)
    assert theirs.weights_sha256 == ours.weights_sha256
    assert theirs.recipe.generation == ours.recipe.generation
    assert theirs.tokenizer.content_hash == ours.tokenizer.content_hash
    writer = GGUFWriter(tmp_path / "others.gguf", "llama")
    writer.add_name("others")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:2000])
    (tmp_path / "text.gguf").write_text("no such thing, but long enough to be one")
    for reference, options, message in (
        ("missing.gguf", {}, "there is no file"),
        ("others.gguf", {}, "was not written by `leveret export gguf`"),
        ("cut.gguf", {}, "no whole GGUF file"),
        ("text.gguf", {}, "no whole GGUF file"),
        ("fennel.gguf", {"backend": "leveret"}, "which llama.cpp reads"),
        ("fennel.gguf", {"quantize": "int8"}, "leave device, dtype and quantize out"),
        ("fennel", {"backend": "llamacpp"}, "llama.cpp reads GGUF files: `leveret export gguf"),
        ("fennel", {"backend": "ollama"}, "--backend ollama is not one of leveret, llamacpp"),
        ("fennel", {"dtype": "int3"}, "--dtype int3 is not one of float32, bfloat16"),
    ):
        with pytest.raises(UserError, match=message):
            leveret.load(str(tmp_path / reference), **options)
    for arguments, message in (
        ((path, "f32"), "is there already"),
        ((tmp_path / "n.gguf", "q2"), "--dtype q2 is not"),
        ((tmp_path / "n.Modelfile",), "must end in .gguf"),
    ):
        with pytest.raises(UserError, match=message):
            export_gguf(str(run), *arguments)
