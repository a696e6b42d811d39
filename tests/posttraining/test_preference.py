"""Preferences: the losses against their definitions, packed against alone, and the reference as it is kept."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.examples import Message, Preference
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.posttraining import reference
from leveret.posttraining.config import PreferConfig
from leveret.posttraining.pairs import write_pairs_as_shards
from leveret.posttraining.preference import Preferences, measure
from leveret.posttraining.reference import Known, make_reference, read_reference
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from leveret.tokenizer.template import render
from leveret.training import cross_entropy
from leveret.training.cross_entropy import linear_token_losses
from leveret.training.parallel import ALONE

CPU = torch.device("cpu")
LENGTH = 96


def asked(*said: str) -> tuple[Message, ...]:
    """A dialogue, the user first, whose last message is the user's."""
    return tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(said))


PAIRS = [
    Preference(asked("list the files"), "ls", "cat"),
    Preference(asked("list the files of /tmp, long"), "ls -l /tmp", "ls /tmp"),
    Preference(asked("where am i?", "pwd", "and the day?"), "date", "date -u +%s"),
    Preference(asked("count the lines of notes.txt"), "wc -l notes.txt", "wc"),
    Preference((Message("system", "be brief"), *asked("who am i?")), "whoami", "who"),
    Preference(asked("two lines"), "cd /srv\nls -a", "cd /srv"),
    Preference(asked("show 20 lines"), "head -n 20 a", "head -n 2 a"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    specials = ["<pad>", "<bos>", "<eos>", "<system>", "<instruction>", "<command>"]
    config = {
        "kind": "bpe", "vocab_size": 290, "special_tokens": specials, "eos_token": "<eos>", "pad_token": "<pad>",
        "template": "command",
    }  # fmt: skip
    return train_tokenizer(TokenizerConfig.model_validate(config), ["list all files", "ls -l /tmp", "head -n 20 a"] * 3)


def pack(folder: Path, tokenizer: Tokenizer, pairs: list[Preference] = PAIRS, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"length": LENGTH, "validation_fraction": 0.0, "facts": {"tokenizer": "abc"}}
    return write_pairs_as_shards(pairs, tokenizer, folder / "shards", **(known | changes))


def batches(folder: Path, known: Known | None = None, rows: int = 3, split: str = "train") -> Batches:
    tokens = TokenStore(folder / "shards").split(split)
    given = np.zeros(len(tokens.starts), dtype=np.float32) if known is None else known[split]
    return Batches(tokens, rows, 2 * LENGTH, tell_documents=True, known=given)


def decoder(tokenizer: Tokenizer, seed: int = 0, **knobs: Any) -> Decoder:
    base = {
        "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": LENGTH, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return Decoder(ModelConfig.model_validate(base | knobs)).double()


def prefer(**changes: Any) -> PreferConfig:
    return PreferConfig.model_validate({"examples": [{"paths": ["pairs.jsonl"]}], "steps": 3} | changes)


# --- what is written -----------------------------------------------------------------------------------------


def documents(folder: Path, split: str = "train") -> Iterator[list[tuple[tuple[int, ...], tuple[bool, ...]]]]:
    """Of every row its documents: ids, and which are learnt."""
    tokens = TokenStore(folder / "shards").split(split)
    for start, length in tokens.windows.pieces.tolist():
        ids, learn = (tokens.read(arrays, start, length).tolist() for arrays in (tokens.shards, tokens.masks))
        cuts = [at - start for at in tokens.starts.tolist() if start <= at < start + length] + [length]
        yield [(tuple(ids[a:b]), tuple(learn[a:b])) for a, b in pairwise(cuts)]


def messages(pair: Preference, answer: str) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in (*pair.prompt, Message("assistant", answer))]


def test_both_answers_stand_in_one_row_the_better_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    counts = pack(tmp_path, tokenizer, PAIRS * 3)
    rows = list(documents(tmp_path))
    expected = sorted(
        tuple(tuple(render(tokenizer, messages(pair, answer)).ids) for answer in (pair.chosen, pair.rejected))
        for pair in PAIRS * 3
    )
    found = [(row[at][0], row[at + 1][0]) for row in rows for at in range(0, len(row), 2)]
    assert sorted(found) == expected
    assert counts["train"]["examples"] == len(PAIRS) * 3
    assert counts["train"]["rows"] == len(rows) < len(PAIRS) * 3, "several pairs stand in a row"
    assert TokenStore(tmp_path / "shards").verify() == []


def test_only_the_last_answer_is_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pack(tmp_path, tokenizer)
    said = [
        tokenizer.decode([i for i, learnt in zip(ids, learn, strict=True) if learnt], skip_special=False)
        for row in documents(tmp_path)
        for ids, learn in row
    ]
    assert sorted(said) == sorted(f"{answer}<eos>" for pair in PAIRS for answer in (pair.chosen, pair.rejected))


def test_a_pair_with_one_answer_too_long_is_left_out_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = Preference(asked("say it"), "echo it", "echo " + "it " * LENGTH)
    counts = pack(tmp_path, tokenizer, [*PAIRS, long])
    assert counts["left_out"] == 1
    assert counts["train"]["examples"] == len(PAIRS)
    with pytest.raises(UserError, match="no pair is left to train on: 1"):
        pack(tmp_path / "none", tokenizer, [long])


def test_the_split_is_by_the_prompt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [
        Preference(asked(f"list folder {n}"), a, b) for n in range(40) for a, b in (("ls", "cd"), ("ls -l", "pwd"))
    ]
    counts = pack(tmp_path, tokenizer, pairs, validation_fraction=0.3)
    assert counts["train"]["examples"] > 0 < counts["validation"]["examples"]

    def prompts(split: str) -> set[tuple[int, ...]]:
        return {ids[: learn.index(True)] for row in documents(tmp_path, split) for ids, learn in row}

    assert prompts("train").isdisjoint(prompts("validation"))


# --- the losses ----------------------------------------------------------------------------------------------


def alone(model: Decoder, tokenizer: Tokenizer, pair: Preference, answer: str) -> tuple[Tensor, int]:
    """The log-probability of an answer from all logits of its row alone, and its tokens with the end token."""
    ids = render(tokenizer, messages(pair, answer)).ids
    prompt = render(tokenizer, messages(pair, answer)[:-1], add_generation_prompt=True).ids
    logits = model(torch.tensor([ids]))[0]
    odds = torch.log_softmax(logits, -1)
    places = range(len(prompt), len(ids))
    return sum((odds[place - 1, ids[place]] for place in places), torch.zeros((), dtype=odds.dtype)), len(places)


FORMS: dict[str, dict[str, Any]] = {
    "dpo": {"form": "dpo", "beta": 0.3},
    "dpo, with the answer's own loss": {"form": "dpo", "sft_weight": 0.7},
    "length-normalised": {"form": "length-normalised", "beta": 2.5},
    "reference-free": {"form": "reference-free", "beta": 1.5, "margin": 0.4},
}


def plainly(model: Decoder, base: Decoder, tokenizer: Tokenizer, config: PreferConfig) -> Tensor:
    """The mean loss of all pairs, as the papers write it."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in PAIRS:
        (won, n), (lost, m) = (alone(model, tokenizer, pair, answer) for answer in (pair.chosen, pair.rejected))
        with torch.no_grad():
            (won_0, _), (lost_0, _) = (alone(base, tokenizer, pair, answer) for answer in (pair.chosen, pair.rejected))
        assert config.beta is not None or config.form == "dpo"
        beta = config.beta or 0.1
        if config.form == "dpo":
            lead = beta * (won - won_0) - beta * (lost - lost_0)
        elif config.form == "length-normalised":
            lead = beta / n * (won - won_0) - beta / m * (lost - lost_0)
        else:
            lead = beta / n * won - beta / m * lost - (config.margin or 0)
        total = total + torch.log(1 + torch.exp(-lead)) - config.sft_weight * won / n
    return total / len(PAIRS)


def known_of(folder: Path, base: Decoder, config: PreferConfig) -> Known | None:
    if not config.has_reference:
        return None
    splits = {"train": batches(folder)}
    return make_reference(folder / "reference", {"weights": "w"}, base, splits, torch.float32, ALONE, print)


def gradients(model: Decoder, objective: Preferences, parts: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of these micro-batches, and its gradients."""
    weight = sum(objective.weight(part) for part in parts)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for part in parts:
        loss = objective.loss(model, part) / weight
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


KNOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "capped, with a window": {"logit_softcap": 4.0, "sliding_window": 9, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_the_papers(
    tmp_path: Path, tokenizer: Tokenizer, form: str, knobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed rows in several batches, against every answer alone with all its logits."""
    monkeypatch.setitem(cross_entropy.CHUNK_NUMBERS, "cpu", 10 * tokenizer.vocab_size)
    config, objective = prefer(**FORMS[form]), Preferences(prefer(**FORMS[form]))
    pack(tmp_path, tokenizer)
    model, base = decoder(tokenizer, **KNOBS[knobs]), decoder(tokenizer, seed=1, **KNOBS[knobs])
    known = known_of(tmp_path, base, config)
    parts = list(batches(tmp_path, known, rows=1).in_order())
    assert 1 < len(parts) < len(PAIRS)
    found, gradient = gradients(model, objective, parts)
    expected = plainly(model, base, tokenizer, config)
    assert found == pytest.approx(expected.item(), abs=1e-5)  # the reference is kept in float32
    model.zero_grad(set_to_none=True)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradient[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
        assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_differences(tmp_path: Path, tokenizer: Tokenizer, form: str) -> None:
    pack(tmp_path, tokenizer)
    model, objective = decoder(tokenizer), Preferences(prefer(**FORMS[form]))
    known = known_of(tmp_path, decoder(tokenizer, seed=1), prefer(**FORMS[form]))
    parts, step = list(batches(tmp_path, known).in_order()), 1e-6
    _, gradient = gradients(model, objective, parts)
    for name in ("embed_tokens.weight", "layers.0.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"):
        parameter = model.get_parameter(name)
        place = int(gradient[name].abs().argmax())
        around = []
        for side in (step, -step):
            with torch.no_grad():
                parameter.view(-1)[place] += side
                around.append(sum(float(objective.loss(model, part)) for part in parts) / len(PAIRS))
                parameter.view(-1)[place] -= side
        assert (around[0] - around[1]) / (2 * step) == pytest.approx(gradient[name].view(-1)[place].item(), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_any_cut_into_micro_batches_gives_the_same_gradients(tmp_path: Path, tokenizer: Tokenizer, form: str) -> None:
    """A batch of eight at once is eight of one; rows that only fill a batch up count nothing."""
    pack(tmp_path, tokenizer, PAIRS * 3)
    model, objective = decoder(tokenizer), Preferences(prefer(**FORMS[form]))
    known = known_of(tmp_path, decoder(tokenizer, seed=1), prefer(**FORMS[form]))
    source = batches(tmp_path, known)
    windows = np.arange(len(source.split.windows))
    assert len(windows) < 8
    whole = source.of_windows(windows, 8)
    assert objective.weight(whole) == len(PAIRS) * 3
    loss, expected = gradients(model, objective, [whole])
    for rows in (1, 3, 5):
        parts = [part.counted() for part in whole.split(rows)]
        assert sum(objective.weight(part) for part in parts) == len(PAIRS) * 3
        found, gradient = gradients(model, objective, parts)
        assert found == pytest.approx(loss, abs=1e-12)
        for name, value in expected.items():
            torch.testing.assert_close(gradient[name], value, atol=1e-12, rtol=1e-9, msg=name)


def test_losses_of_tokens_are_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_NUMBERS, "cpu", 3 * 11)
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    targets = torch.tensor([3, 0, IGNORED, 10, 7, IGNORED, 1, 1])
    scale = torch.randn(8, dtype=torch.float64)
    for cap in (None, 2.0):
        found, expected = ([each.clone().requires_grad_() for each in (hidden, head)] for _ in range(2))
        losses = linear_token_losses(*found, targets, IGNORED, cap)
        logits = expected[0] @ expected[1].T
        plain = F.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), targets, reduction="none")
        torch.testing.assert_close(losses, plain)
        (losses * scale).sum().backward()
        (plain * scale).sum().backward()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_measures_say_what_the_model_prefers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pack(tmp_path, tokenizer)
    model, objective = decoder(tokenizer), Preferences(prefer())
    known = known_of(tmp_path, model, prefer())
    both = [[alone(model, tokenizer, p, answer)[0].item() for answer in (p.chosen, p.rejected)] for p in PAIRS]
    figures = measure(model, objective, batches(tmp_path, known).in_order(), CPU, torch.float32)
    assert figures["pairs"] == len(PAIRS)
    assert figures["preferred"] == pytest.approx(sum(a > b for a, b in both) / len(PAIRS))
    assert figures["chosen"] == pytest.approx(sum(a for a, _ in both) / len(PAIRS), rel=1e-5)
    assert figures["rejected"] == pytest.approx(sum(b for _, b in both) / len(PAIRS), rel=1e-5)
    assert figures["margin"] == pytest.approx(0, abs=1e-5), "the model is its own reference"
    assert figures["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert model.training


def test_the_forms_have_settings_of_their_own() -> None:
    assert [(prefer(form=form).the_beta, prefer(form=form).the_margin) for form in ("dpo", "reference-free")] == [
        (0.1, 0.0),
        (2.0, 1.0),
    ]
    assert prefer(margin=0.0, form="reference-free").the_margin == 0
    with pytest.raises(ValidationError, match="preferences need chunked"):
        prefer(loss_kernel="liger")


# --- the reference -------------------------------------------------------------------------------------------


class Counted(Decoder):
    """Counts its forward passes, and is stopped in one of them."""

    calls, stop = 0, 10**9

    def hidden(self, *given: Any, **named: Any) -> Tensor:
        self.calls += 1
        if self.calls > self.stop:
            raise KeyboardInterrupt
        return super().hidden(*given, **named)


def counted(tokenizer: Tokenizer) -> Counted:
    made = Counted(decoder(tokenizer).config)
    made.load_state_dict(decoder(tokenizer, seed=1).state_dict())
    return made


def make(folder: Path, model: Decoder, key: dict[str, str]) -> Known:
    splits = {"train": batches(folder, rows=1)}
    return make_reference(folder / "reference", key, model, splits, torch.float32, ALONE, print)


def test_the_reference_is_computed_once_and_equals_what_answers_have_alone(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pack(tmp_path, tokenizer)
    model, key = counted(tokenizer), {"weights": "w", "shards": "s"}
    known = make(tmp_path, model, key)
    calls = model.calls
    assert calls > 0
    assert np.array_equal(make(tmp_path, model, key)["train"], known["train"])
    assert model.calls == calls
    kept = read_reference(tmp_path / "reference", {"shards": "s"})
    assert kept is not None
    assert np.array_equal(kept["train"], known["train"])
    by_ids = {
        tuple(render(tokenizer, messages(pair, answer)).ids): alone(model, tokenizer, pair, answer)[0].item()
        for pair in PAIRS
        for answer in (pair.chosen, pair.rejected)
    }
    expected = [by_ids[ids] for row in documents(tmp_path) for ids, _ in row]
    assert known["train"].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_reference_that_is_damaged_or_of_another_base_is_computed_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pack(tmp_path, tokenizer)
    model, key = counted(tokenizer), {"weights": "w", "shards": "s"}
    known = make(tmp_path, model, key)
    path = tmp_path / "reference" / "train.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert read_reference(tmp_path / "reference", key) is None
    assert np.array_equal(make(tmp_path, model, key)["train"], known["train"])
    assert bytes(content) != path.read_bytes()
    calls = model.calls
    make(tmp_path, model, key | {"weights": "other"})
    assert model.calls == 3 * calls / 2


def test_a_reference_goes_on_where_it_was_stopped(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path, tokenizer, PAIRS * 3)
    monkeypatch.setattr(reference, "PAUSE", 0.0)  # every batch is kept
    model, key = counted(tokenizer), {"weights": "w"}
    rows = len(batches(tmp_path).split.windows)
    model.stop = rows - 2
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, model, key)
    assert read_reference(tmp_path / "reference", key) is None
    model.calls, model.stop = 0, 10**9
    known = make(tmp_path, model, key)
    assert model.calls == 2
    assert not np.isnan(known["train"]).any()
    assert sorted(path.name for path in (tmp_path / "reference").iterdir()) == ["manifest.json", "train.npy"]
