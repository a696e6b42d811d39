"""Data that the tests of training share."""

import numpy as np
import pytest
from tiny_training import LENGTH, VOCABULARY, document, unpainted

from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import Windows, concatenated


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures would take most of a tiny run's time."""
    unpainted(monkeypatch)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Plain documents, and a masked split of rows of two documents each as fine-tuning has them."""
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder / "plain", VOCABULARY, 400)
    for number in range(90):
        writer.add("train" if number % 6 else "validation", document(number, 10 + number % 7), 20)
    writer.finish({n: concatenated(writer.starts(n), s.tokens, LENGTH) for n, s in writer.splits.items()}, {})
    return TokenStore(folder / "plain")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder / "packed", VOCABULARY, 400, masked=True)
    windows, start = [], 0
    for row in range(40):
        for length in (4 + row % 3, 5 + row % 2):
            writer.add("train", document(row * 2 + length, length), 9, [i >= 2 for i in range(length)])
        windows.append((start, 9 + row % 3 + row % 2))
        start += windows[-1][1]
    writer.finish({"train": Windows(np.asarray(windows))}, {})
    return TokenStore(folder / "packed")
