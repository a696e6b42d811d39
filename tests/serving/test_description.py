"""The description of the server's routes holds: whatever follows it is answered as it says, and nothing breaks."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny_server import Running, running

from leveret.api import LoadedModel

ROUTES = ["POST /v1/completions", "POST /v1/chat/completions", "GET /v1/models", "GET /v1/models/{model}",
          "GET /healthz", "GET /metrics"]  # fmt: skip


@pytest.fixture(scope="module")
def server(model: LoadedModel) -> Iterator[Running]:
    """One that takes large bodies, since 413 tells nothing of the body's content."""
    with running(model, max_body_bytes=32 << 20) as up:
        yield up


@pytest.fixture(scope="module")
def operations(server: Running) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_route_is_tried(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(ROUTES)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_requests_made_from_the_description(operations: dict[str, Any], route: str, mode: GenerationMode) -> None:
    """No 5xx, only statuses and content types that are described, and what breaks the schema is refused. What keeps to
    it may be refused too: limits depend on the model, and templates on the order of roles."""
    if mode is GenerationMode.NEGATIVE and not route.startswith("POST"):
        return  # any text may be asked for

    @given(case=operations[route].as_strategy(generation_mode=mode))
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def hold(case: Any) -> None:
        case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance])

    hold()


def test_the_description_tells_our_form_of_errors_only(server: Running) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert "422" not in str(described["paths"])
    assert "HTTPValidationError" not in described["components"]["schemas"]
