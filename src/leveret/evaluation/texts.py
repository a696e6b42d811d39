"""Loss and bits per byte of any model on the same held-out text, document by document.

Each document is read from its start in windows as long as the model's context that do not overlap: its first token
follows the one that starts a text, that of each further window the last one before. Bits are divided by the bytes of
the text in UTF-8, so that models with other tokenizers can be compared; a longer context is an advantage that counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from leveret.data.config import SourceConfig
from leveret.data.sources import Document, documents
from leveret.evaluation.bootstrap import ratio_interval
from leveret.evaluation.foreign import ForeignEngine
from leveret.evaluation.likelihood import Pair, encode_pair
from leveret.evaluation.suite import read_likelihoods
from leveret.inference.engine import Engine

Row = dict[str, Any]


def read_texts(path: Path, limit: int | None = None) -> list[Document]:
    """The first so many documents of a file or a folder, in any format that pretraining takes; empty ones are left out.

    Raises:
        UserError: there is none.
    """
    source = SourceConfig(paths=[str(path.absolute())])
    return list(islice((each for each in documents(source, Path.cwd(), {}) if each.text), limit))


def text_losses(engine: Engine | ForeignEngine, texts: Sequence[Document]) -> list[Row]:
    """For each document its source, bytes and tokens, and how likely the model finds it, in nats."""
    start = encode_pair(engine.tokenizer, "", "").context[0]
    groups: list[list[Pair]] = []
    for text in texts:
        ids = engine.tokenizer.encode(text.text)
        before = [start, *ids]
        groups.append([Pair([before[at]], ids[at : at + engine.context]) for at in range(0, len(ids), engine.context)])
    # A window by itself, so that many short ones can share a batch.
    found = iter(read_likelihoods(engine, [[window] for windows in groups for window in windows]))
    return [
        {
            "id": number,
            "source": text.source,
            "bytes": len(text.text.encode("utf-8", "surrogatepass")),
            "tokens": sum(len(window.continuation) for window in windows),
            "loglikelihood": sum(next(found)[0].loglikelihood for _ in windows),
        }
        for number, (text, windows) in enumerate(zip(texts, groups, strict=True))
    ]


def summarise_texts(rows: Sequence[Row]) -> dict[str, Any]:
    """Loss (nats a token), perplexity and bits per byte with the latter's 95% interval over documents; by source too,
    where there are several.
    """
    figures = _figures(rows, "")
    sources = list(dict.fromkeys(row["source"] for row in rows))
    if len(sources) > 1:
        apart = {source: [row for row in rows if row["source"] == source] for source in sources}
        figures["by_source"] = {source: _figures(part, source) for source, part in apart.items()}
    return figures


def _figures(rows: Sequence[Row], name: str) -> dict[str, Any]:
    nats, tokens, size = (sum(row[key] for row in rows) for key in ("loglikelihood", "tokens", "bytes"))
    return {
        "documents": len(rows),
        "bytes": size,
        "tokens": tokens,
        "loss": -nats / tokens,
        "perplexity": math.exp(min(700.0, -nats / tokens)),
        "bits_per_byte": -nats / math.log(2) / size,
        "interval_95": ratio_interval(bits(rows), [row["bytes"] for row in rows], name),
    }


def bits(rows: Sequence[Row]) -> np.ndarray:
    """What each document takes."""
    return np.array([-row["loglikelihood"] for row in rows]) / math.log(2)


def compare_texts(a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    """The difference of two models in bits per byte, a's less b's, with its interval over documents."""
    sizes = np.array([row["bytes"] for row in a])
    apart = bits(a) - bits(b)
    return {"difference": float(apart.sum() / sizes.sum()), "interval_95": ratio_interval(apart, sizes)}
