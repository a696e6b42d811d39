"""tiktoken's encodings as tokenizer.json: a table of byte strings with ranks becomes a vocabulary and its merges."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from leveret.errors import UserError
from leveret.strangers.files import read_limited
from leveret.tokenizer.patterns import PATTERNS, byte_characters, split_and_bytes


@dataclass(frozen=True)
class Encoding:
    """A named encoding of tiktoken: everything but its ranks."""

    pattern: str
    ranks: int
    """How many entries the ranks file has."""
    special_tokens: Mapping[str, int]


MOST_BYTES = 2**26
"""Of a ranks file; cl100k_base's has 1.7 MB."""
ENCODINGS = {
    "gpt2": Encoding(PATTERNS["gpt2"], 50_256, {"<|endoftext|>": 50_256}),
    "cl100k_base": Encoding(
        PATTERNS["cl100k"],
        100_256,
        {
            "<|endoftext|>": 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a ranks file: `base64 rank` per line. Raises UserError where it is missing or malformed."""
    try:
        rows = [line.split() for line in read_limited(path, MOST_BYTES).splitlines() if line]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except OSError:
        raise UserError(f"ranks_file {path} cannot be read; check the path") from None
    except (ValueError, binascii.Error):
        raise UserError(f"ranks_file {path} is not `base64 rank` per line; give a .tiktoken file") from None


def download_ranks(name: str) -> dict[bytes, int]:
    """tiktoken's own ranks, from its cache or the network. Raises UserError when neither has them."""
    import tiktoken

    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a hash that does not fit is a ValueError
        reason = type(error).__name__
        raise UserError(
            f"tiktoken could not fetch '{name}' ({reason}); set tokenizer.ranks_file to a local .tiktoken file"
        ) from None
    pieces = (encoding.decode_single_token_bytes(rank) for rank in range(ENCODINGS[name].ranks))
    return {piece: rank for rank, piece in enumerate(pieces)}


def definition_of(ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]) -> str:
    """The tokenizer.json with the ids of `ranks` and `special_tokens`; gaps between them get reserved entries.

    Raises UserError when a rank is no merge of two lower ones, which byte-pair encoding cannot have made.
    """
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    characters = byte_characters()

    def text(piece: bytes) -> str:
        return "".join(characters[byte] for byte in piece)

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [(text(a), text(b)) for a, b in (_halves(piece, ranks) for piece in ordered if len(piece) > 1)]
    vocab = {text(piece): ranks[piece] for piece in ordered} | dict(special_tokens)
    taken = set(vocab.values())
    vocab |= {f"<|reserved_{index}|>": index for index in range(max(taken)) if index not in taken}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    split_and_bytes(backend, pattern)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    return str(backend.to_str())


def _halves(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The pair whose merge made `piece`: what merging with lower ranks only leaves of it."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    limit = ranks[piece]
    while len(parts) > 2:
        candidates = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(candidates)
        if rank >= limit:
            raise UserError(f"the ranks are no byte-pair encoding: {piece!r} is no merge of two lower ones")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
