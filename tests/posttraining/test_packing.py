"""Packed rows: nothing lost, nothing added, and a packed row teaches what its examples teach one by one."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.examples import Example, Message, one_turn
from leveret.data.shards import TokenStore, is_validation
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.posttraining.lengths import as_messages
from leveret.posttraining.packing import write_examples_as_shards
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from leveret.tokenizer.template import render
from leveret.training.objective import NextToken

SPECIALS = {
    "command": ["<pad>", "<bos>", "<eos>", "<system>", "<instruction>", "<command>"],
    "chatml": ["<pad>", "<|im_start|>", "<|im_end|>"],
    "parchment": ["<pad>", "<|endoftext|>"],
}
END = {"command": "<eos>", "chatml": "<|im_end|>", "parchment": "<|endoftext|>"}
TEXTS = [
    "list all files in the folder",
    "find . -name '*.log' | wc -l",
    "show the first 20 lines",
    "head -n 20 notes.txt",
]
EXAMPLES = [
    one_turn("list the files", "ls"),
    one_turn("how many files are in /srv?", "find /srv -type f | wc -l"),
    one_turn("list the files of /tmp, long", "ls -l /tmp"),
    one_turn("show the first 20 lines of notes.txt", "head -n 20 notes.txt"),
    one_turn("say  <eos> and <|im_end|>", "echo '<eos> <|im_end|>'"),
    one_turn("two lines", "cd /srv\nls -a"),
    Example((Message("system", "be brief"), Message("user", "who am i?"), Message("assistant", "whoami"))),
    Example(
        (
            Message("user", "where am i?"),
            Message("assistant", "pwd"),
            Message("user", "and the day?"),
            Message("assistant", "date"),
        )
    ),
]


def make_tokenizer(template: str, pattern: str = "gpt2") -> Tokenizer:
    specials = SPECIALS[template]
    return train_tokenizer(
        TokenizerConfig.model_validate(
            {
                "kind": "bpe",
                "pattern": pattern,
                "vocab_size": 300,
                "special_tokens": specials,
                "eos_token": END[template],
                "pad_token": "<pad>",
                "template": template,
            }
        ),
        TEXTS * 3,
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer("command")


def pack(
    folder: Path, tokenizer: Tokenizer, examples: list[Example] = EXAMPLES, length: int = 96, fraction: float = 0.0
) -> dict[str, Any]:
    return write_examples_as_shards(examples, tokenizer, folder / "shards", length, fraction, {"tokenizer": "abc"})


def read(folder: Path, split: str = "train", rows: int = 64, length: int = 96) -> list[Batch]:
    store = TokenStore(folder / "shards")
    return list(Batches(store.split(split), rows, length, pad_id=0, tell_documents=True).in_order())


def alone(example: Example, tokenizer: Tokenizer) -> Batch:
    """The example as a row of its own."""
    rendered = render(tokenizer, as_messages(example))
    ids, learn = torch.tensor([rendered.ids]), torch.tensor([rendered.learn])
    return Batch(ids[:, :-1], ids[:, 1:].masked_fill(~learn[:, 1:], IGNORED))


# --- what is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [90, 96, 103, 117, 118, 119, 120, 121, 150])
def test_every_example_is_there_once(tmp_path: Path, tokenizer: Tokenizer, room: int) -> None:
    counts = pack(tmp_path, tokenizer, EXAMPLES * 2, room)
    (batch,) = read(tmp_path, length=room)
    found: Counter[tuple[int, ...]] = Counter()
    split = TokenStore(tmp_path / "shards").split("train")
    for row, (start, length) in enumerate(split.windows.pieces.tolist()):
        assert length <= room + 1
        assert batch.documents is not None
        tokens = split.read(split.shards, start, length).tolist()
        cuts = [s - start for s in split.starts.tolist() if start <= s < start + length] + [length]
        assert cuts[0] == 0  # a row begins with an example, and so holds whole ones only
        found.update(tuple(tokens[a:b]) for a, b in pairwise(cuts))
        assert batch.documents[row].unique().tolist() == list(range(int(batch.documents[row].max()) + 1))
    assert found == Counter(tuple(render(tokenizer, as_messages(e)).ids) for e in EXAMPLES * 2)
    assert counts["train"]["examples"] == 16
    assert counts["train"]["rows"] == len(split.windows) == len(batch.inputs)
    assert counts["train"]["filled"] == pytest.approx(split.tokens / ((room + 1) * len(split.windows)), abs=1e-4)
    assert counts["train"]["learnt_tokens"] == batch.weight


def test_examples_that_are_too_long_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lengths = sorted(len(render(tokenizer, as_messages(e)).ids) for e in EXAMPLES)
    counts = pack(tmp_path, tokenizer, length=lengths[-3])
    assert counts["too_long"] == counts["left_out"] == 2  # an example of exactly sequence_length is not too long
    assert counts["truncated"] == 0
    assert counts["lengths"] == {"median": lengths[3], "p90": lengths[-1], "p99": lengths[-1], "longest": lengths[-1]}
    assert counts["train"]["examples"] == len(EXAMPLES) - 2
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["examples"] == counts
    assert manifest["tokenizer"] == "abc"
    assert TokenStore(tmp_path / "shards").verify() == []


def test_nothing_that_fits_is_a_user_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="8 are longer than 3"):
        pack(tmp_path, tokenizer, length=3)


def test_a_template_that_marks_no_answer_is_a_user_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    unmarked = Tokenizer(tokenizer.definition, tokenizer.roles, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match=r"no token would be learnt: .* does not mark"):
        write_examples_as_shards(EXAMPLES, unmarked, tmp_path, 48, 0.0, {})


def test_the_split_is_by_the_instruction(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """So that the same question with another answer cannot stand on both sides."""
    examples = [one_turn(f"list folder {n}", answer) for n in range(60) for answer in ("ls", "ls -l")]
    counts = pack(tmp_path, tokenizer, examples, fraction=0.3)
    held_out = {e.instruction for e in examples if is_validation(e.instruction, 0.3)}
    assert 5 < len(held_out) < 40
    for split, wanted in (("validation", held_out), ("train", {e.instruction for e in examples} - held_out)):
        said = {
            text.split("\n")[1]
            for batch in read(tmp_path, split)
            for row in range(len(batch.inputs))
            if batch.documents is not None
            for number in range(int(batch.documents[row].max()) + 1)
            if (text := tokenizer.decode(batch.inputs[row][batch.documents[row] == number].tolist()))  # not the filling
        }
        assert said == wanted
        assert counts[split]["examples"] == 2 * len(wanted)


def test_variants_of_a_question_are_on_the_same_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    wordings = ("list folder {}", "List  folder {}.", "LIST FOLDER {}!")
    examples = [one_turn(wording.format(n), "ls") for n in range(40) for wording in wordings]
    counts = pack(tmp_path, tokenizer, examples, fraction=0.3)
    assert 0 < counts["validation"]["examples"] < 120
    assert counts["validation"]["examples"] % 3 == 0 == counts["train"]["examples"] % 3
    assert counts["near_validation"] == 0


def test_near_duplicates_of_what_is_validated_on_are_not_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    asked = [f"copy alpha{n} beta{n} gamma{n} delta{n} to the disk" for n in range(40)]
    wordings = [one_turn(text, f"cp {n}") for n, text in enumerate(asked)]
    again = [one_turn(f"please {text} now", f"cp {n}") for n, text in enumerate(asked)]
    others = [one_turn(f"please {text} now", f"mv {n}") for n, text in enumerate(asked)]
    counts = pack(tmp_path, tokenizer, wordings + again + others, fraction=0.3)
    on_the_other_side = {
        n for n, (a, b) in enumerate(zip(wordings, again, strict=True))
        if is_validation(a.instruction, 0.3) != is_validation(b.instruction, 0.3)
    }  # fmt: skip
    assert counts["near_validation"] == len(on_the_other_side) > 5
    assert counts["train"]["examples"] + counts["validation"]["examples"] == 120 - len(on_the_other_side)


def test_the_same_examples_make_the_same_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a", "b"):
        pack(tmp_path / name, tokenizer)
    first, second = (json.loads((tmp_path / n / "shards" / "manifest.json").read_text()) for n in ("a", "b"))
    assert first == second


# --- what is learnt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["gpt2", "words"])
@pytest.mark.parametrize("template", SPECIALS)
def test_only_answers_and_their_end_tokens_are_learnt(tmp_path: Path, template: str, pattern: str) -> None:
    tokenizer = make_tokenizer(template, pattern)
    pack(tmp_path, tokenizer, length=160)
    end = tokenizer.special_tokens[END[template]]
    learnt: Counter[str] = Counter()
    for batch in read(tmp_path, length=160):
        for targets in batch.targets:
            run: list[int] = []
            for target in targets.tolist():
                if target == IGNORED:
                    assert not run, "an answer without its end token"
                    continue
                run.append(target)
                if target == end:
                    learnt[tokenizer.decode(run, skip_special=False)] += 1
                    run = []
    said = [m.content + END[template] for e in EXAMPLES for m in e.messages if m.role == "assistant"]
    assert learnt == Counter(said)


@pytest.mark.parametrize("template", SPECIALS)
def test_filling_is_never_learnt_from(tmp_path: Path, template: str) -> None:
    tokenizer = make_tokenizer(template)
    pack(tmp_path, tokenizer, EXAMPLES[:1], length=160)
    (batch,) = read(tmp_path, length=160)
    used = len(render(tokenizer, as_messages(EXAMPLES[0])).ids)
    assert (batch.targets[0, used - 1 :] == IGNORED).all()
    assert (batch.inputs[0, used:] == 0).all()


def gradients(model: Decoder, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The loss of all batches together, per learnt token, and its gradients."""
    objective = NextToken()
    weight = sum(objective.weight(batch) for batch in batches)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = objective.loss(model, batch) / weight
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


SHAPES: dict[str, dict[str, Any]] = {
    "rope": {"num_key_value_heads": 1},
    "learned": {"position": "learned", "residual": "parallel-shared-norm"},
    "sliding window": {"sliding_window": 7, "qk_norm": True, "residual": "parallel"},
    "no positions": {"position": "none", "logit_softcap": 5.0, "tie_word_embeddings": True},
}


def tiny_decoder(tokenizer: Tokenizer, name: str) -> Decoder:
    base = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 96,
    }
    torch.manual_seed(0)
    model = Decoder(ModelConfig.model_validate(base | SHAPES[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far enough from even odds that attention matters
    return model


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest, where that is more than one: of a few targets and weights like these it may be 30."""
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5 * scale, rtol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_rows_teach_what_their_examples_teach(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    model = tiny_decoder(tokenizer, name)
    counts = pack(tmp_path, tokenizer)
    assert counts["train"]["rows"] <= len(EXAMPLES) / 2
    packed_loss, packed = gradients(model, read(tmp_path, rows=2))
    loss, single = gradients(model, [alone(example, tokenizer) for example in EXAMPLES])
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert_equal_gradients(packed, single)
    for parameter, gradient in single.items():
        assert gradient.abs().max() > 1e-3, parameter


@pytest.mark.parametrize("name", SHAPES)
def test_each_example_of_a_packed_row_has_the_loss_it_has_alone(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    """One by one, so that no error of one is made up for by another; the dialogue of several turns among them."""
    model = tiny_decoder(tokenizer, name)
    pack(tmp_path, tokenizer)
    (batch,) = read(tmp_path)
    assert batch.documents is not None
    left = {tuple(render(tokenizer, as_messages(example)).ids): example for example in EXAMPLES}
    for row, documents in enumerate(batch.documents):
        for number in range(int(documents.max()) + 1):
            here = documents == number
            said = tuple(batch.inputs[row][here].tolist())  # at a full row's end, all but the last token
            ids = next((ids for ids in left if ids[: len(said)] == said), None)
            if ids is None:
                assert set(said) == {0}, "what is no example is filling"
                continue
            targets = torch.full_like(batch.targets, IGNORED)
            targets[row][here] = batch.targets[row][here]
            loss, found = gradients(model, [replace(batch, targets=targets)])
            single_loss, single = gradients(model, [alone(left.pop(ids), tokenizer)])
            assert loss == pytest.approx(single_loss, abs=1e-5)
            assert_equal_gradients(found, single)
    assert not left
