"""A tokenizer as llama.cpp has it: its two kinds, the names of its cuts of text, and where it cannot be equal.

    byte-level BPE       "gpt2": tokens and merges as in tokenizer.json, and the name of a cut that llama.cpp knows
    SentencePiece's BPE  "llama": pieces with scores, the best neighbours joined first, bytes for what has no piece

tokenizer.json goes along whole, under the key that the format has for it: from it we read our tokenizer back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from leveret.errors import UserError
from leveret.tokenizer.patterns import PATTERNS
from leveret.tokenizer.pieces import BYTE_PIECE, id_to_token, merge_pairs, piece_bytes
from leveret.tokenizer.spm import SPACE

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from leveret.tokenizer.tokenizer import Tokenizer

Definition = dict[str, Any]

WHOLE = "tokenizer.huggingface.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF, which are SentencePiece's."""
ONE_DIGIT = PATTERNS["cl100k"].replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS_FIRST = "digits one by one, then gpt2's pattern"
CUTS = {
    PATTERNS["gpt2"]: "gpt-2",
    PATTERNS["cl100k"]: "dbrx",
    ONE_DIGIT: "qwen2",
    DIGITS_FIRST: "smollm",
    PATTERNS["words"]: "superbpe",
}
"""How text is cut before merging, and llama.cpp's name for it. It has none for `words`; superbpe's cut, at runs of
digits alone, is coarser: each of its borders is one of `words` too, and where no token reaches across a border of
`words`, merging gives the same."""
WHOLE_FIRST = {PATTERNS["cl100k"]: "llama-bpe"}
"""The same for tokenizers that take a piece whole if it is a token, whatever the merges say (ignore_merges)."""


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> list[str]:
    """Writes a tokenizer's keys.

    Returns:
        Which texts llama.cpp may cut otherwise, a line each.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    definition = json.loads(tokenizer.definition)
    if tokenizer.eos_id is None:
        raise UserError("llama.cpp would take a token of its own choice for the end: name the tokenizer's eos_token")
    model = definition["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"llama.cpp cannot cut text as this {model['type']} tokenizer does, which writes characters that it has no "
            "piece for as bytes; export to it takes BPE, of bytes or of SentencePiece"
        )
    notes = _add_sentencepiece(writer, definition) if model.get("byte_fallback") else _add_bytes(writer, definition)
    writer.add_token_types(_types(definition, tokenizer))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_eos_token_id(tokenizer.eos_id)
    # llama.cpp has a first token in any case, which it adds to nothing here; templates must not find it, though.
    writer.add_bos_token_id(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
    for role in ("pad", "unk"):
        if (index := getattr(tokenizer, f"{role}_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    if tokenizer.chat_template is not None:
        unnamed = "bos_token" in tokenizer.chat_template and tokenizer.bos_id is None
        writer.add_chat_template("{%- set bos_token = '' -%}" * unnamed + tokenizer.chat_template)
    writer.add_string(WHOLE, tokenizer.definition)
    return notes


def _tokens(definition: Definition) -> list[str]:
    """Token texts by id; ids that nothing has get a name of their own."""
    known = id_to_token(definition)
    return [known.get(index, f"[UNUSED{index}]") for index in range(max(known) + 1)]


def _types(definition: Definition, tokenizer: Tokenizer) -> list[int]:
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in definition["added_tokens"]}
    known, bytes_too = id_to_token(definition), definition["model"].get("byte_fallback")

    def kind(index: int) -> int:
        if index == tokenizer.unk_id:
            return UNKNOWN
        if index not in known:
            return UNUSED
        return added.get(index, BYTE if bytes_too and BYTE_PIECE.fullmatch(known[index]) else NORMAL)

    return [kind(index) for index in range(max(known) + 1)]


# -- byte-level BPE -----------------------------------------------------------------------------------------------


def _add_bytes(writer: GGUFWriter, definition: Definition) -> list[str]:
    cut, notes = _cut(definition), []
    whole = definition["model"].get("ignore_merges", False)
    name = WHOLE_FIRST.get(cut) if whole else CUTS.get(cut)
    if not definition["model"]["merges"]:
        raise UserError("llama.cpp reads no tokenizer without merges, and this one's tokens are single bytes")
    if name is None:
        raise UserError(f"llama.cpp knows no cut of text like this tokenizer's ({cut[:60]!r}), so its ids would differ")
    normalizer = (definition["normalizer"] or {}).get("type")
    if normalizer == "NFC":
        notes.append("llama.cpp does not compose letters and their accents first (NFC), as this tokenizer does")
    elif normalizer is not None:
        raise UserError(f"llama.cpp has no normalizer {normalizer} for byte-level tokenizers, so its ids would differ")
    if cut == PATTERNS["words"] and (across := _across_words(definition)):
        notes.append(
            f"{across} tokens are made of parts of two characters, so llama.cpp may cut text outside ASCII otherwise "
            "where words touch signs"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(_tokens(definition))
    writer.add_token_merges([f"{left} {right}" for left, right in merge_pairs(definition)])
    return notes


def _cut(definition: Definition) -> str:
    """The regular expression that cuts text, or what stands for it."""
    step = definition["pre_tokenizer"] or {"type": "none"}
    steps = step.get("pretokenizers", [step])
    kinds = [step["type"] for step in steps]
    if kinds[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return "+".join(kinds)
    if steps[-1].get("use_regex", True):  # older files do not say it
        digits = kinds[:-1] == ["Digits"] and steps[0]["individual_digits"]
        return PATTERNS["gpt2"] if kinds == ["ByteLevel"] else DIGITS_FIRST if digits else "+".join(kinds)
    if kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
        return str(steps[0]["pattern"].get("Regex"))
    return "+".join(kinds)


def _across_words(definition: Definition) -> int:
    """How many merged tokens hold the end of one character and the beginning of the next, but not both whole.

    Within a word such a token is made of letters; across the border of two words the same bytes could come together.
    """
    pieces, _ = piece_bytes(definition)
    vocab = definition["model"]["vocab"]
    made = {vocab[left + right] for left, right in merge_pairs(definition)}
    return sum(_torn(pieces[index]) for index in made)


def _torn(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return any(byte & 0xC0 != 0x80 for byte in data[1:])  # more than parts of one character
    return False


# -- SentencePiece ------------------------------------------------------------------------------------------------


def _add_sentencepiece(writer: GGUFWriter, definition: Definition) -> list[str]:
    prefix, notes = _space_first(definition), []
    if raw := _keeps_spaces(definition):
        notes.append(f"llama.cpp reads {SPACE} (U+2581) in a text as a space")
    vocab = definition["model"]["vocab"]
    made = dict.fromkeys(left + right for left, right in merge_pairs(definition))  # each once, best first
    order = {vocab[piece]: rank for rank, piece in enumerate(made)}
    tokens, added = _tokens(definition), {token["id"] for token in definition["added_tokens"]}
    if raw:
        tokens = [token if i in added else token.replace(" ", SPACE) for i, token in enumerate(tokens)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(order.get(index, 0)) for index in range(len(tokens))])
    writer.add_add_space_prefix(prefix)
    return notes


def _keeps_spaces(definition: Definition) -> bool:
    """Whether a space is a space inside the tokenizer too, as in those that we train."""
    return definition["normalizer"] is None and (definition["pre_tokenizer"] or {}).get("type") == "Split"


def _space_first(definition: Definition) -> bool:
    """Whether a space is put in front of a text.

    Raises:
        UserError: texts are changed otherwise before they are cut.
    """
    if _keeps_spaces(definition):
        return False
    step = definition["normalizer"] or {"type": "none"}
    steps = [(step["type"], step.get("prepend", step.get("content"))) for step in step.get("normalizers", [step])]
    plain = [("Replace", SPACE)]
    if definition["pre_tokenizer"] is not None or steps not in (plain, [("Prepend", SPACE), *plain]):
        names = "+".join(name for name, _ in steps)
        raise UserError(f"llama.cpp does not change texts as this tokenizer does ({names}), so its ids would differ")
    return len(steps) > 1
