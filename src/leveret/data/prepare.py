"""Documents to token shards.

documents --> split by hash --> encode --> ShardWriter --> windows --> manifest
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from leveret.data.config import DataConfig
from leveret.data.shards import ShardWriter, concatenated_windows, is_validation
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.tokenizer.tokenizer import Tokenizer

CHUNK = 512
"""Documents encoded at once."""


def prepare_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    config: DataConfig,
    sequence_length: int,
    folder: Path,
    facts: dict[str, Any],
) -> None:
    """Tokenises documents into the shards of folder, which must not exist.

    Raises:
        UserError: nothing to train on, or an end token is asked for that the tokenizer lacks.
    """
    before, after = _frame(config.document_format, tokenizer)
    writer = ShardWriter(folder, tokenizer.vocab_size, config.shard_tokens)
    of_source: Counter[str] = Counter()
    remaining = iter(documents)
    while chunk := list(islice(remaining, CHUNK)):
        encoded = tokenizer.encode_batch([document.text for document in chunk])
        for document, ids in zip(chunk, encoded, strict=True):
            split = "validation" if is_validation(document.text, config.validation_fraction) else "train"
            writer.add(split, before + ids + after, len(document.text.encode("utf-8", "replace")))
            of_source[document.source] += 1
    if "train" not in writer.splits:
        raise UserError("the corpus is empty: no document to train on; check the recipe's data.sources")
    windows = {name: concatenated_windows(split.tokens, sequence_length) for name, split in writer.splits.items()}
    writer.finish(windows, facts | {"documents_by_source": dict(of_source)})


def _frame(document_format: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The token ids before and after each document."""

    def ids(part: str) -> list[int]:
        out: list[int] = []
        for piece in part.replace("{bos}", "\0bos\0").replace("{eos}", "\0eos\0").split("\0"):
            if piece in ("bos", "eos"):
                number = tokenizer.bos_id if piece == "bos" else tokenizer.eos_id
                if number is None:
                    raise UserError(f"data.document_format has {{{piece}}}, but the tokenizer has no {piece}_token")
                out.append(number)
            elif piece:
                out += tokenizer.encode(piece)
        return out

    before, _, after = document_format.partition("{text}")
    return ids(before), ids(after)
