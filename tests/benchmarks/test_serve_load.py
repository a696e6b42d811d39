"""The quick form of the benchmark: every trial is done, and goals that do not hang on the load are met."""

from collections.abc import Callable
from typing import Any

import pytest
from serve_fuzz import wrong_requests


@pytest.mark.long
def test_quick_form_loads_and_attacks_a_server(script: Callable[..., Any]) -> None:
    done = script("serve_load", "--quick")
    result = done.last
    assert result["benchmark"] == "serve_load"
    assert len(result["rows"]) == 5
    values = {key: goal["value"] for key, goal in result["goals"].items()}
    assert values["errors_under_load"] == values["wrong_requests_5xx"] == 0
    assert values["left_slot_free_seconds"] < 1.0
    assert values["killed_slot_free_seconds"] < 1.0
    assert values["slow_loris_p95_ratio"] > 0
    assert done.err == ""


def test_wrong_requests_are_the_same_for_a_seed() -> None:
    assert list(wrong_requests(200, 5)) == list(wrong_requests(200, 5))
    assert len(set(wrong_requests(200, 5))) > 150
