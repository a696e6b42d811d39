"""tokenizer.json files of others: older forms are read as what they mean, and damaged ones are refused in a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ENGLISH, WORLD, made_tokenizer, write_run

from leveret.errors import UserError
from leveret.export.gguf import export_gguf
from leveret.tokenizer.pieces import MOST_IDS
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

Parts = dict[str, Any]


def without_model_type(parts: Parts) -> None:
    del parts["model"]["type"]


def merges_as_texts(parts: Parts) -> None:
    parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]


def as_gpt2s_own(parts: Parts) -> None:
    """What the hub has of GPT-2."""
    without_model_type(parts)
    merges_as_texts(parts)
    parts["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def without_normalizer(parts: Parts) -> None:
    del parts["normalizer"]


OLDER = [without_model_type, merges_as_texts, as_gpt2s_own, without_normalizer]


@pytest.mark.parametrize("change", OLDER, ids=lambda change: change.__name__)
def test_older_forms_give_the_same_ids_and_are_exported(change: Callable[[Parts], None], tmp_path: Path) -> None:
    ours = made_tokenizer("bpe-gpt2", ENGLISH + WORLD)
    parts = json.loads(ours.definition)
    change(parts)
    theirs = Tokenizer(json.dumps(parts), ours.roles)
    for text in (*ENGLISH[:3], *WORLD[:2], "<eos>", " a\n\n b"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    export_gguf(str(write_run(tmp_path / "run", theirs)), tmp_path / "model.gguf")


def in_parts(*place: str | int) -> Callable[[Parts, Any], None]:
    def put(parts: Parts, value: Any) -> None:
        for step in place[:-1]:
            parts = parts[step]  # type: ignore[index]
        parts[place[-1]] = value  # type: ignore[index]

    return put


@pytest.mark.parametrize(
    ("put", "value", "said"),
    [
        (in_parts("added_tokens", 0, "id"), 2**31, "ids that do not lie below"),
        (in_parts("added_tokens", 0, "id"), MOST_IDS, "ids that do not lie below"),
        (in_parts("model", "continuing_subword_prefix"), "64", "not a tokenizer.json"),
        (in_parts("decoder"), None, "only byte-level and"),
        (in_parts("model"), None, "not a tokenizer.json"),
    ],
)
def test_what_would_fill_the_memory_or_makes_no_sense_is_refused(
    put: Callable[[Parts, Any], None], value: Any, said: str
) -> None:
    parts = json.loads(made_tokenizer("bpe-gpt2", ENGLISH).definition)
    put(parts, value)
    with pytest.raises(UserError, match=said):
        Tokenizer(json.dumps(parts), SpecialRoles())


def test_one_value_of_another_kind_is_taken_or_refused() -> None:
    """Nothing but a UserError comes of it, in any part but the vocabulary."""
    taken, refused = 0, 0
    for kind in ("bpe-gpt2", "sentencepiece-bpe"):
        parts = json.loads(made_tokenizer(kind, ENGLISH).definition)
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            steps = [
                step
                for key in ("normalizers", "pretokenizers", "decoders")
                for step in (parts[name] or {}).get(key, [])
            ]
            for holder in [parts, *steps]:
                for key in [name] if holder is parts else list(holder):
                    kept = holder[key]
                    for value in (None, True, 7, "x", [], {}, ["x"], {"type": "x"}):
                        holder[key] = value
                        try:
                            Tokenizer(json.dumps(parts), SpecialRoles()).encode("a text")
                            taken += 1
                        except UserError:
                            refused += 1
                    holder[key] = kept
    assert min(taken, refused) >= 10
