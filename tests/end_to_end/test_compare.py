"""`leveret compare`: runs, exports, models of transformers' and tasks of one's own under one protocol."""

import json
import re
from pathlib import Path

import pytest
from benchmark_rows import FILES
from tiny_models import ENGLISH, GPT2, made_tokenizer, write_run
from tiny_project import Command

from leveret.cli.app import app
from leveret.errors import UserError
from leveret.export.write import export_model
from leveret.tasks.benchmarks import BENCHMARKS

TASKS = """
from leveret.evaluation.tasks import Rows

def letters():
    for text in ("a", "b"):
        yield {"context": "The letter", "choices": [text, "cat"], "gold": 0}

def anything():
    return Rows([{"prompt": f"say {n}", "answer": "x"} for n in range(3)], lambda answer, expected: True, 4)

def broken():
    yield {"context": "The letter", "choices": ["a"], "gold": 1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "bench").mkdir()
    for name in ("copa", "arc_easy", "lambada_openai"):
        lines = "".join(json.dumps(row) + "\n" for row in FILES[name])
        (folder / "bench" / f"{BENCHMARKS[name].file}.jsonl").write_text(lines)
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH)
    write_run(folder / "one", tokenizer)
    write_run(folder / "two", tokenizer, **GPT2)
    export_model(str(folder / "one"), folder / "exported")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "held.jsonl").write_text('{"prompt": "make it", "completion": "touch it"}\n')
    texts = ENGLISH[:3] * 4
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} {t}"}) + "\n" for n, t in enumerate(texts)))
    return folder


def test_models_of_any_kind_are_compared(leveret: Command, place: Path) -> None:
    suite = "copa,arc_easy,lambada,tasks.py:letters,tasks.py:anything,held.jsonl"
    options = ["--suite", suite, "--bench", "bench", "--text", "text.jsonl", "--output", "found"]
    done = leveret("compare", "one", "two/pretrain@0", "exported", *options, cwd=place)
    text = (place / "found" / "comparison.md").read_text()
    assert done.stdout.strip() == text.strip()
    for heading in ("Tasks", "Pairs", "Held-out text", "Calibration", "Answers"):
        assert f"## {heading}" in text
    assert "## Published" not in text
    facts = json.loads((place / "found" / "comparison.json").read_text())
    models = facts["models"]
    assert list(models) == ["one/pretrain", "two/pretrain@0", "exported"]
    tasks = ["copa", "arc_easy", "lambada_openai", "letters", "anything", "held"]
    assert all(list(each["tasks"]) == tasks for each in models.values())
    # An export is the run that it is of, in every answer.
    (same,) = (pair for pair in facts["pairs"] if pair["b"] == "exported" and pair["a"] == "one/pretrain")
    assert (same["won"], same["lost"], same["tied"]) == (0, 0, 6)
    assert same["text"]["difference"] == 0
    assert models["one/pretrain"]["tasks"]["anything"]["acc"] == 1  # by the task's own rule
    low, high = models["one/pretrain"]["text"]["interval_95"]
    assert low < models["one/pretrain"]["text"]["bits_per_byte"] < high
    rows = (place / "found" / "answers" / "two-pretrain-0" / "copa.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["copa/0", "copa/1"]
    for picture in ("accuracy", "bits", "reliability"):
        assert (place / "found" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{picture}.png" in text
    assert "one/pretrain: loading" in done.stderr
    again = leveret("compare", "one", "two/pretrain@0", "exported", *options, cwd=place)
    assert "loading" not in again.stderr  # all was kept
    assert again.stdout == done.stdout


def test_what_cannot_be_loaded_is_a_line_and_what_was_published_stands_apart(leveret: Command, place: Path) -> None:
    options = ["--suite", "copa", "--bench", "bench", "--output", "public"]
    models = ["one", "nobody/nothing@main", "two"]
    done = leveret("compare", *models, "--baselines", "l20", *options, cwd=place, exit_code=2)  # there is no network
    assert "8 of 10 models are left out" in done.stderr
    facts = json.loads((place / "public" / "comparison.json").read_text())
    assert list(facts["models"]) == ["one/pretrain", "two/pretrain"]
    assert any("openai-community/gpt2@607a30d" in each["model"] for each in facts["failures"])
    measured, apart = (place / "public" / "comparison.md").read_text().split("## Published figures, not measured here")
    assert "- nobody/nothing@main: 'nobody/nothing' is no folder here" in measured
    assert "| one/pretrain against two/pretrain |" in measured
    assert "SmolLM2-135M |" in apart
    assert "| l20-edu-135m |" in apart
    assert "| l20-edu-135m |" not in measured


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["one"], "takes two models"),
        (["one", "two", "--suite", "none"], "leaves nothing to compare by"),
        (["one", "two", "--suite", "large"], "no benchmark 'large'"),
        (["one", "two", "--suite", "tasks.py:broken"], "row 1 is no question of a task: gold is 1"),
        (["one", "two", "--suite", "tasks.py:lettres"], "did you mean 'letters'"),
        (["one", "--baselines", "l21"], "there is no set 'l21'"),
        (["nobody", "nothing", "--suite", "copa", "--bench", "bench"], "none of the models can be compared"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], told: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(told)):
        app(["compare", *arguments], standalone_mode=False)
