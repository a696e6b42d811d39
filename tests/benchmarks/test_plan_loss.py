"""The quick form of the benchmark: a ladder, a foretelling, the larger run, and the last line that the docs promise."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.long
def test_quick_form_foretells_and_trains(script: Callable[..., Any]) -> None:
    done = script("plan_loss", "--quick")
    result = done.last
    assert result["benchmark"] == "plan_loss"
    *runs, facts = result["rows"]
    assert len(runs) == 4
    assert runs[-1]["run"] == "large"
    losses = [run["loss"] for run in runs]
    assert losses == sorted(losses, reverse=True)
    assert 3 < facts["times_the_largest"] < 6
    assert facts["measured"] == losses[-1]
    assert result["goals"]["off_by_nats"]["value"] == round(abs(facts["foretold"] - facts["measured"]), 4)
