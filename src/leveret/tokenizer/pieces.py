"""The bytes each token stands for, read from a tokenizer.json: what decoding joins.

Two families write text without loss: byte-level vocabularies, where each character is a byte, and SentencePiece ones,
where a mark may stand for the space and `<0x41>` is a byte.
"""

from __future__ import annotations

import re
from typing import Any

from leveret.errors import UserError
from leveret.tokenizer.patterns import byte_characters

MOST_IDS = 2**22
"""Of a vocabulary: what it is made of is listed by id, so that a single id without bounds would take all memory."""
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def id_to_token(definition: dict[str, Any]) -> dict[int, str]:
    """Token texts by id, added tokens included."""
    vocab = definition["model"]["vocab"]
    pairs = enumerate(entry[0] for entry in vocab) if isinstance(vocab, list) else ((i, t) for t, i in vocab.items())
    return {**dict(pairs), **{token["id"]: token["content"] for token in definition["added_tokens"]}}


def merge_pairs(definition: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of BPE in order. Older files have a pair as one text."""
    merges = definition["model"]["merges"]
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]  # type: ignore[misc]


def piece_bytes(definition: dict[str, Any]) -> tuple[list[bytes], bool]:
    """(bytes of each token by id, whether decoding drops one space at the start of a text).

    Raises UserError for decoders that are neither byte-level nor SentencePiece (WordPiece, say).
    """
    steps = _decoder_steps(definition)
    names = {step["type"] for step in steps}
    tokens = id_to_token(definition)
    added = {token["id"] for token in definition["added_tokens"]}
    if not tokens or not 0 <= min(tokens) <= max(tokens) < MOST_IDS:
        raise UserError(f"a tokenizer.json without ids, or with ids that do not lie below {MOST_IDS:,}; check the file")
    pieces = [b""] * (max(tokens) + 1)
    if names == {"ByteLevel"}:
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        for index, token in tokens.items():
            plain = index in added or not all(character in byte_of for character in token)
            pieces[index] = token.encode() if plain else bytes(byte_of[character] for character in token)
        return pieces, False
    if not steps or not names <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise UserError(
            f"tokenizer.json has the decoder {'+'.join(sorted(names)) or 'none'}; only byte-level and "
            "SentencePiece-like tokenizers write text without loss: choose one of those"
        )
    space = next((step["replacement"] for step in steps if step["type"] == "Metaspace"), None)
    space = space or next((step["pattern"]["String"] for step in steps if step["type"] == "Replace"), None)
    for index, token in tokens.items():
        byte = BYTE_PIECE.fullmatch(token) if "ByteFallback" in names else None
        text = token.replace(space, " ") if space and index not in added else token
        pieces[index] = bytes([int(byte[1], 16)]) if byte else text.encode()
    drops = any(s["type"] == "Strip" or s.get("prepend_scheme", "never") != "never" for s in steps)
    return pieces, drops


def _decoder_steps(definition: dict[str, Any]) -> list[dict[str, Any]]:
    decoder = definition.get("decoder") or {}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder] if decoder else [])
    return steps
