"""Mixtures: shares by weight, caps, filters by field, and balanced generators."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from leveret.data.config import ExamplesConfig
from leveret.data.examples import Example, examples
from leveret.data.mixtures import Drawn, counts, draw
from leveret.errors import UserError
from leveret.tasks.arithmetic import ArithmeticOptions, problems
from leveret.tasks.generators import EXAMPLES


def write_source(folder: Path, name: str, size: int, **fields: Any) -> str:
    rows = [{"instruction": f"{name} {number}", "output": "x"} | fields for number in range(size)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.jsonl"


def drawn(folder: Path, *sources: dict[str, Any]) -> Drawn[Example]:
    configs = [ExamplesConfig.model_validate(source) for source in sources]
    return draw(configs, lambda source, drop: examples(source, folder, EXAMPLES, drop), strict=False)


def by_source(found: Drawn[Example]) -> Counter[str]:
    return Counter(example.source for example in found.items)


@pytest.mark.parametrize(
    ("sizes", "weights", "taken"),
    [
        ([10, 100], [None, None], [10, 100]),
        ([10, 100], [1, 2], [10, 20]),
        ([10, 100], [1, 20], [5, 100]),
        ([30, 30, 30], [0.1, 0.2, 0.3], [10, 20, 30]),
        ([10, 10], [1, 3], [3, 10]),
        ([7], [0.3], [7]),
    ],
)
def test_counts_are_the_most_that_have_the_shares(sizes: list[int], weights: list[float], taken: list[int]) -> None:
    assert counts(sizes, weights) == taken


def test_weights_decide_the_shares_and_no_example_comes_twice(tmp_path: Path) -> None:
    for name, size in (("a", 300), ("b", 1000)):
        write_source(tmp_path, name, size)
    sources = [{"paths": ["a.jsonl"], "weight": 3}, {"paths": ["b.jsonl"], "weight": 1}]
    found = drawn(tmp_path, *sources)
    assert by_source(found) == {"a.jsonl": 300, "b.jsonl": 100}
    assert len({example.instruction for example in found.items}) == 400
    assert [facts | {"refused": None} for facts in found.facts()] == [
        {"read": 300, "taken": 300, "refused": None},
        {"read": 1000, "taken": 100, "refused": None},
    ]
    assert list(found.lines())[1] == "b.jsonl: 100 of 1,000 examples taken (weight 1)"
    assert drawn(tmp_path, *sources).items == found.items


def test_what_is_drawn_is_spread_over_the_source_and_kept_by_a_greater_share(tmp_path: Path) -> None:
    for name, size in (("a", 200), ("b", 1000)):
        write_source(tmp_path, name, size)

    def places(weight: float) -> list[int]:
        found = drawn(tmp_path, {"paths": ["a.jsonl"], "weight": 1}, {"paths": ["b.jsonl"], "weight": weight})
        return [int(example.instruction.split()[1]) for example in found.items if example.source == "b.jsonl"]

    some, more = places(1), places(2)
    assert (len(some), len(more)) == (200, 400)
    assert set(some) < set(more)
    assert some == sorted(some)
    assert all(25 <= sum(place // 200 == fifth for place in some) <= 55 for fifth in range(5))


def test_a_cap_comes_before_the_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_source(tmp_path, name, 100)
    sources = [{"paths": ["a.jsonl"], "max_examples": 40, "weight": 2}, {"paths": ["b.jsonl"], "weight": 1}]
    assert by_source(drawn(tmp_path, *sources)) == {"a.jsonl": 40, "b.jsonl": 20}
    for source in sources:
        del source["weight"]
    assert by_source(drawn(tmp_path, *sources)) == {"a.jsonl": 40, "b.jsonl": 100}


def test_a_weight_too_small_for_one_example_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_source(tmp_path, name, 10)
    with pytest.raises(UserError, match=r"^b\.jsonl: with a weight of 1e-05 not one example is taken"):
        drawn(tmp_path, {"paths": ["a.jsonl"], "weight": 1}, {"paths": ["b.jsonl"], "weight": 1e-5})


def test_rows_that_are_not_wanted_are_neither_read_nor_refused(tmp_path: Path) -> None:
    categories = ["closed_qa", "open_qa", "information_extraction", "brainstorming", "summarization"]
    rows: list[dict[str, Any]] = [
        {"instruction": f"{category} {number}", "context": "", "response": "x", "category": category}
        for number in range(4)
        for category in categories
    ]
    rows += [{"instruction": "no answer", "category": category} for category in ("open_qa", "brainstorming")]
    (tmp_path / "dolly.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = drawn(tmp_path, {"paths": ["dolly.jsonl"], "where": {"category": categories[:3]}})
    assert Counter(example.meta["category"] for example in found.items) == dict.fromkeys(categories[:3], 4)
    assert [where for where, _ in found.refused[0].first] == ["dolly.jsonl:21"]


def test_numbers_and_booleans_are_asked_for_as_json_has_them(tmp_path: Path) -> None:
    for name, value in (("a", True), ("b", 3), ("c", None), ("d", {"x": 1})):
        write_source(tmp_path, name, 2, label=value)
    found = drawn(tmp_path, {"paths": ["*.jsonl"], "where": {"label": ["true", "3", "None", "null"]}})
    assert by_source(found) == {"a.jsonl": 2, "b.jsonl": 2}
    assert [example.where for example in found.items][:3] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


def test_rows_of_the_hub_are_filtered_capped_and_refused_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "dolly").mkdir()
    rows = [
        {"instruction": f"question {number}", "response": "" if number == 3 else "x", "category": category}
        for number in range(6)
        for category in ("open_qa", "brainstorming")
    ]
    (tmp_path / "dolly" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "hub", "name": str(tmp_path / "dolly"), "where": {"category": ["open_qa"]}, "max_examples": 4}
    found = drawn(tmp_path, source)
    assert [example.instruction for example in found.items] == [f"question {number}" for number in (0, 1, 2, 4)]
    ((where, why),) = found.refused[0].first
    assert where.endswith("[train] train.jsonl:7")
    assert why == "'response' is empty"


def test_arithmetic_of_ten_thousand_is_balanced(tmp_path: Path) -> None:
    made = list(problems(ArithmeticOptions(count=10_000)))
    assert Counter(problem.operation for problem in made) == dict.fromkeys("+-*/", 2_500)
    found = drawn(tmp_path, {"kind": "generated", "generator": "arithmetic", "options": {"count": 10_000}})
    assert [example.instruction for example in found.items] == [problem.prompt for problem in made]


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_public_sources_filtered_and_mixed() -> None:
    base = Path(os.environ["LEVERET_DATA"]) / "instruct"
    found = drawn(
        base,
        {"paths": ["alpaca_libre_tasks_v1.jsonl"], "where": {"status": ["ok"]}, "weight": 1},
        {"kind": "generated", "generator": "arithmetic", "weight": 4},
    )
    read = found.read[0]
    assert found.taken == [read, 4 * read]
