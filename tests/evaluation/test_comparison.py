"""A comparison that is stopped goes on where it was: each answer is asked for once."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import ENGLISH, GPT2, made_tokenizer, write_run

from leveret.candidates import find_candidate
from leveret.evaluation import comparison
from leveret.evaluation.comparison import Comparison, Wish, compare
from leveret.evaluation.tasks import find_tasks

TASKS = """
def first():
    yield {"context": "make", "choices": ["it", "them"], "gold": 0}

def second():
    yield {"context": "touch", "choices": ["it", "them"], "gold": 1}
"""


def test_a_stopped_comparison_asks_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH)
    write_run(tmp_path / "one", tokenizer)
    write_run(tmp_path / "two", tokenizer, **GPT2)
    (tmp_path / "tasks.py").write_text(TASKS)
    wish = Wish(find_tasks("tasks.py:first,tasks.py:second", tmp_path))
    asked: list[tuple[str, str]] = []
    ask, stops = comparison.ask, [True]

    def counting(model: Any, name: str, items: Any) -> Any:
        if len(asked) == 3 and stops:
            stops.clear()
            raise KeyboardInterrupt
        asked.append((model.run.name, name))
        return ask(model, name, items)

    def compared() -> Comparison:
        runs = [str(tmp_path / name) for name in ("one", "two")]
        return compare(runs, find_candidate, wish, tmp_path / "cache", lambda line: None)

    monkeypatch.setattr(comparison, "ask", counting)
    with pytest.raises(KeyboardInterrupt):
        compared()
    found = compared()
    assert asked == [(run, task) for run in ("one", "two") for task in ("first", "second")]
    assert compared().facts["pairs"] == found.facts["pairs"]
    assert len(asked) == 4
