"""Data that the tests of survival share."""

import pytest
from tiny_training import plain_store

from leveret.data.shards import TokenStore


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Plain documents, in two splits."""
    return plain_store(tmp_path_factory.mktemp("shards") / "plain")
