"""`leveret generate` with the options of sampling."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from pseudo_terminal import Terminal
from test_chat import HOSTILE, SPELT, only
from tiny_project import Command
from tiny_server import tiny_model, write_run

from leveret.api import LoadedModel


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model(256)


@pytest.fixture(scope="module")
def talker(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("talker") / "talker", model)
    recipe = (run / "recipe.yaml").read_text()
    assert "sample_prompts: []" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("sample_prompts: []", "sample_prompts: [one, two]"))
    return run


def test_every_option_of_sampling_reaches_the_engine(
    model: LoadedModel, talker: Path, leveret: Command, tmp_path: Path
) -> None:
    asked = {
        "max_new_tokens": 12,
        "temperature": 3.0,
        "top_k": 200,
        "top_p": 0.99,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "seed": 5,
    }
    options = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    biased = ["--set", "repetition_form=per-count", "--set", "logit_bias={100: 5}"]
    asked |= {"stop": ["\x00", "\x01"], "repetition_form": "per-count", "logit_bias": {100: 5}}
    stops = ["--set", 'stop=["\\0", "\\x01"]']
    command = ["generate", talker, "-", "-n", "3", *options, *biased, *stops]
    drawn = leveret(*command, cwd=tmp_path, typed="hello\n").stdout
    expected = [completion.text for completion in model.complete(["hello"] * 3, **asked)]
    assert drawn == "".join(f"[{number}] {text}\n" for number, text in enumerate(expected, 1))
    assert len(set(expected)) == 3


def test_an_answer_is_one_of_the_choices_or_keeps_to_a_schema(talker: Path, leveret: Command, tmp_path: Path) -> None:
    done = leveret("generate", talker, "hello", "--choice", HOSTILE, "--max-new-tokens", "99", cwd=tmp_path)
    assert done.stdout == f"{HOSTILE}\n"  # a pipe gets what was said, byte for byte
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    options = ["--json-schema", "schema.json", "--max-new-tokens", "60"]
    assert json.loads(leveret("generate", talker, "hello", *options, cwd=tmp_path).stdout)["on"] in (True, False)


def test_without_a_prompt_those_of_the_recipe_are_continued(talker: Path, leveret: Command, tmp_path: Path) -> None:
    done = leveret("generate", talker, "--raw", "-n", "2", "--set", only("!"), cwd=tmp_path)
    assert done.stdout == "[1] one!\n[2] one!\n[1] two!\n[2] two!\n"


def test_log_probabilities_stand_in_a_table(talker: Path, leveret: Command, tmp_path: Path) -> None:
    options = ["--choice", "a\n ", "--logprobs", "2"]
    answer, blank, head, *rows = leveret("generate", talker, "hello", *options, cwd=tmp_path).stdout.splitlines()
    assert (answer, blank) == ("a", " ")
    assert head.split() == ["logprob", "token", "most", "probable"]
    assert [row.split('"')[1] for row in rows] == ["a", r"\n", " "]
    for row in rows:
        chosen, first, second = (float(row.split('"')[at].split()[-1]) for at in (0, 4, 6))
        assert second <= first < 0
        assert chosen <= first + 0.01


def test_a_terminal_is_not_commanded_by_an_answer(talker: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    options = ["--choice", HOSTILE, "--max-new-tokens", "99", "--logprobs", "1"]
    with Terminal(environment, ["generate", talker, "hello", *options], tmp_path) as terminal:
        assert terminal.wait_for("logprob").startswith(SPELT)
        assert terminal.leave() == 0
    assert "\x1b" not in terminal.out


def test_a_terminal_shows_the_whole_of_a_command_before_it_runs(
    talker: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    run = shutil.copytree(talker, tmp_path / "hiding")
    recipe = (run / "recipe.yaml").read_text()
    hiding = json.dumps(["touch bad\r\x1b[2Kecho good"])
    recipe = recipe.replace("choices: []", f"choices: {hiding}").replace("max_new_tokens: 8\n", "max_new_tokens: 40\n")
    (run / "recipe.yaml").write_text(recipe)
    with Terminal(environment, ["shell", "greet", "--model", run, "--run"], tmp_path) as terminal:
        assert terminal.wait_for("run it?").startswith(r"touch bad\r\x1b[2Kecho good")
        terminal.send("n\n")
        assert terminal.leave() == 1
    assert "\x1b[2K" not in terminal.out
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--top-p", "2"], "top_p: Input should be less than or equal to 1, not 2.0"),
        (["--beams", "2", "--temperature", "1"], "beams are for temperature 0: set it, or beams to 1"),
        (["--json-schema", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_option_is_told(
    arguments: list[str], expected: str, talker: Path, leveret: Command, tmp_path: Path
) -> None:
    done = leveret("generate", talker, "hello", *arguments, cwd=tmp_path, exit_code=2)
    assert done.stderr == f"leveret: {expected}\n"
