"""The quick form of the benchmark: every way learns the same tokens, and the last line is what the docs promise."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.long
def test_quick_form_measures_every_way(script: Callable[..., Any]) -> None:
    done = script("sft_throughput", "--quick", "--device", "cpu")
    result = done.last
    assert result["benchmark"] == "sft_throughput"
    assert result["machine"]["device"] == "cpu"
    assert result["facts"]["lengths"] == "drawn"
    rows = {row["way"]: row for row in result["rows"]}
    assert rows.keys() == {"packed", "padded to row", "padded to batch"}
    assert rows["padded to row"]["rows"] == rows["padded to batch"]["rows"] == result["facts"]["examples"]
    assert rows["packed"]["positions"] <= rows["padded to batch"]["positions"] < rows["padded to row"]["positions"]
    for row in rows.values():
        assert min(row["examples_per_second"], row["learnt_tokens_per_second"], row["packed_vs_this"]) > 0
    assert rows["packed"]["packed_vs_this"] == 1
    assert result["goals"]["packed_vs_padded"] == {"value": rows["padded to row"]["packed_vs_this"], "goal": 3.0}
