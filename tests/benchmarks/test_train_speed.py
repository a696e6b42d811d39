"""The quick form of the benchmark: every contestant really trains, and the last line is what the docs promise."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest


@pytest.mark.long
def test_quick_form_measures_everyone(script: Callable[..., Any]) -> None:
    done = script("train_speed", "--quick", "--device", "cpu")
    result = done.last
    assert result["benchmark"] == "train_speed"
    assert result["machine"]["device"] == "cpu"
    rows = {row["contestant"]: row for row in result["rows"]}
    expected = {"matrix products", "leveret, eager", "plain GPT-2, eager"}
    for name in ("transformers", "litgpt"):
        if find_spec(name):
            expected.add(f"{name}, eager")
        else:
            assert f"{name} is not installed" in done.out
    assert rows.keys() == expected
    for name, row in rows.items():
        speeds = row["tokens_per_second"], row["best_tokens_per_second"], row["ms_per_step"]
        assert min(*speeds, row["peak_memory_bytes"], row["of_limit"]) > 0
        assert math.isclose(row["ms_per_step"] * row["tokens_per_second"], 64e3, rel_tol=0.01)
        assert math.isclose(row["parameters"], rows["leveret, eager"]["parameters"], rel_tol=0.02)
        if name != "matrix products":  # fresh weights know nothing yet, of the same tokens
            assert math.isclose(row["first_loss"], math.log(512), rel_tol=0.02)
    assert rows["leveret, eager"]["vs_best_peer"] > 0
