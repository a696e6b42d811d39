"""Tasks beside the public benchmarks: arithmetic, files, functions of one's own by path, name or entry point."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from leveret.errors import UserError
from leveret.evaluation import tasks
from leveret.evaluation.tasks import Items, find_tasks
from leveret.recipe import anchored, parse_recipe

OWN = """
def capitals():
    return [{"prompt": "Capital of France?", "answer": "Paris"}] * 3

def mixed():
    return [{"prompt": "a", "answer": "b"}, {"context": "a", "choices": ["b"], "gold": 0}]

def fails():
    raise OSError("no such thing")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def load(name: str, place: Path, declared: dict[str, str] | None = None) -> Items:
    (task,) = find_tasks(name, place, declared)
    return task.load(2, None, print)


def test_arithmetic_is_held_out_and_scored_by_its_last_number() -> None:
    (task,) = find_tasks("arithmetic", Path())
    items: Items = task.load(40, None, print)
    assert len(items.items) == 40
    assert items.content_hash == task.load(40, None, print).content_hash
    assert items.content_hash != task.load(39, None, print).content_hash
    assert items.right(" 8849 -> 9488", "9488")
    assert items.right(" 17.\n13 + 4 = 18", "17")  # base models go on
    assert not items.right("9488 or so", "9488")
    assert not items.right(" ", "0")


def test_a_recipe_names_a_function_of_a_file_beside_it(own: Path) -> None:
    content = {
        "name": "x",
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "data": {"sources": [{"paths": ["a.txt"]}]},
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                  "max_position_embeddings": 32},
        "pretrain": {"steps": 1},
        "evaluate": {"tasks": {"towns": "own.py:capitals"}},
    }  # fmt: skip
    declared = anchored(parse_recipe(content, "x.yaml"), own).evaluate.tasks
    items = load("towns", Path("/"), declared)  # from anywhere
    assert len(items.items) == 2
    assert items.source["path"] == str(own / "own.py:capitals")
    assert items.source["sha256"]
    assert items.questions[0].pairs == (("Capital of France?", " Paris"),)  # for audits
    assert items.right(" Paris ", "Paris")


def test_a_package_brings_tasks_along(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own))
    known = EntryPoints([EntryPoint("capitals", "own:capitals", tasks.GROUP)])
    monkeypatch.setattr(tasks, "entry_points", lambda **wanted: known.select(**wanted))
    assert len(load("capitals", Path("/")).items) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own.py:mixed", "rows of both kinds"),
        ("own.py:fails", "failed .OSError: no such thing"),
        ("own.py:nothing", "nothing there is called"),
        ("nowhere.jsonl", "nor a task or a file; there are small, six"),
    ],
)
def test_mistakes(name: str, told: str, own: Path) -> None:
    with pytest.raises(UserError, match=told):
        load(name, own)


def test_two_tasks_of_one_name_are_refused(own: Path) -> None:
    (own / "other.py").write_text(OWN)
    with pytest.raises(UserError, match="two tasks are called 'capitals'"):
        find_tasks("own.py:capitals,other.py:capitals", own)
