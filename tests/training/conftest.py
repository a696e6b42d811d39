"""Data that the tests of training share."""

import numpy as np
import pytest
from tiny_training import VOCABULARY, document, plain_store, unpainted

from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import Windows


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures would take most of a tiny run's time."""
    unpainted(monkeypatch)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Plain documents."""
    return plain_store(tmp_path_factory.mktemp("shards") / "plain")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A masked split of rows of two documents each, as fine-tuning has them."""
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
