"""One server that most tests ask."""

from collections.abc import Iterator

import pytest
from browsing import chromium
from openai import OpenAI
from playwright.sync_api import Browser
from tiny_server import Running, running, tiny_model

from leveret.api import LoadedModel


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="session")
def server(model: LoadedModel) -> Iterator[Running]:
    with running(model) as up:
        yield up


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not of the session: while it is there, no other test could run an event loop."""
    with chromium() as found:
        yield found
