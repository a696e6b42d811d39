"""The quick form of the benchmark: cases run, and the last line is what the docs promise."""

from collections.abc import Callable
from typing import Any

import pytest

MODELS = ("smallm-20m", "tinyllm-cli-67m", "gpt2-124m", "l20-edu-135m", "parchment-166m")


def measured(script: Callable[..., Any], *options: str) -> dict[str, Any]:
    result: dict[str, Any] = script("train_memory", "--quick", "--device", "cpu", *options).last
    assert result["benchmark"] == "train_memory"
    assert result["machine"]["device"] == "cpu"
    for row in result["rows"]:
        assert min(row["peak_gb"], row["estimate_gb"]) > 0
    return result


def test_two_losses_are_measured(script: Callable[..., Any]) -> None:
    result = measured(script, "--only", "loss")
    assert [row["case"] for row in result["rows"]] == ["chunked:parchment-166m", "plain:parchment-166m"]
    assert 0 < result["goals"]["chunked_of_plain"]["value"] < 1


@pytest.mark.long
def test_every_case_is_measured(script: Callable[..., Any]) -> None:
    result = measured(script)
    rows = {row["case"]: row for row in result["rows"]}
    fits, tensors = ([f"{kind}:{name}" for name in MODELS] for kind in ("fits", "tensors"))
    assert list(rows) == [*fits, "chunked:parchment-166m", "plain:parchment-166m", *tensors]
    assert {rows[case]["micro_batch_size"] for case in fits} == {16}, "so little fits at once"
    assert result["goals"]["peak_gb_of_five"]["value"] == max(rows[case]["peak_gb"] for case in fits)
    off = max(abs(rows[case]["estimate_gb"] / rows[case]["peak_gb"] - 1) for case in tensors)
    assert result["goals"]["estimates_off_by"]["value"] == pytest.approx(off, abs=1e-3)


@pytest.mark.long
def test_an_estimate_is_within_a_tenth_of_what_tensors_take(script: Callable[..., Any]) -> None:
    row = script("train_memory", "--device", "cpu", "--case", "tensors:smallm-20m").last
    assert abs(row["estimate_gb"] / row["peak_gb"] - 1) <= 0.1
