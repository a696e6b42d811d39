"""decode_speed.py: what it makes of measurements, and that its quick form goes the whole way."""

from collections.abc import Callable
from typing import Any

import pytest
from decode_contestants import together
from decode_speed import goals_of


def test_waits_of_many_answers() -> None:
    figures = together(5, 10.0, [[11.0, 11.5, 12.0], [13.0, 14.0]])
    assert figures == {
        "tokens_per_second": 1.25,  # five in four seconds
        "first_token_ms": 2000.0,
        "between_p50_ms": 500.0,
        "between_p99_ms": 1000.0,
    }


def test_goals_compare_like_with_like() -> None:
    alone = {"leveret bf16": 90.0, "llama.cpp bf16": 100.0, "leveret int8": 300.0, "llama.cpp q8_0": 200.0}
    at_16 = {"leveret bf16": 400.0, "llama.cpp bf16": 200.0, "leveret int8": 450.0, "llama.cpp q8_0": 500.0}
    rows = [{"contestant": name, "tokens_per_second": rate} for name, rate in alone.items()]
    rows += [{"contestant": name, "tokens_per_second": rate, "requests": 16} for name, rate in at_16.items()]
    assert goals_of(rows) == {
        "bf16_vs_llamacpp": {"value": 0.9, "goal": 0.8},
        "int8_vs_llamacpp_q8": {"value": 1.5, "goal": 1.0},
        "batch16_vs_llamacpp": {"value": 0.9, "goal": 1.0},
    }


@pytest.mark.long
def test_the_quick_form_goes_the_whole_way(script: Callable[..., Any]) -> None:
    done = script("decode_speed", "--quick", "--device", "cpu")
    assert "agree on at least 8 of 8 tokens" in done.out
    result = done.last
    assert {row["contestant"] for row in result["rows"]} >= {"leveret int4", "transformers bf16"}
