"""`leveret chat` as it is typed: in terminals of several kinds, and in a pipe."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pseudo_terminal import Terminal
from rich.cells import cell_len
from tiny_project import Command
from tiny_server import tiny_model, write_run

from leveret.api import LoadedModel

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202etxt"
SPELT = r"\x1b]0;owned\x07\x1b[31mred\x9b2J\u202etxt"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model(256)


@pytest.fixture(scope="module")
def talker(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model says anything, unless it may choose among few things."""
    return write_run(tmp_path_factory.mktemp("talker") / "talker", model)


def only(*texts: str) -> str:
    return f"choices={json.dumps(texts)}"


def endless(model: LoadedModel) -> list[str]:
    """Options under which the model says words of the letter a, for ever."""
    bias = {model.tokenizer.encode(text)[0]: 100 for text in ("a", " ")}
    return [
        "--set",
        f"logit_bias={json.dumps(bias)}",
        "--temperature",
        "1",
        "--seed",
        "1",
        "--max-new-tokens",
        "999999",
    ]


# --- in a pipe -----------------------------------------------------------------------------------------------


def test_a_pipe_carries_answers_only(talker: Path, leveret: Command, tmp_path: Path) -> None:
    typed = ["hello", "/set choices [no]", "again", "//etc is what?", "/undo", "/system Be brief.", "/save said.json"]
    options = ["--set", only(f"yes {HOSTILE}"), "--seed", "3", "--max-new-tokens", "99"]
    done = leveret("chat", talker, *options, cwd=tmp_path, typed="\n".join(typed))
    assert done.stdout == f"yes {SPELT}\nno\nno\n"
    assert done.stderr == 'choices ["no"]\ntaken back: /etc is what?\nsystem: Be brief.\n4 messages in said.json\n'
    assert json.loads((tmp_path / "said.json").read_text("utf-8")) == {
        "format_version": 1,
        "model": "tiny",
        "system": "Be brief.",
        "sampling": {"choices": ["no"], "seed": 3, "max_new_tokens": 99},
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": f"yes {HOSTILE}"},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "no"},
        ],
    }
    typed = ["/set choices", "/retry", "/reset", "/undo", "/load said.json", "/undo", "/save said.json", "/help"]
    done = leveret("chat", talker, "--load", "said.json", cwd=tmp_path, typed="\n".join(typed))
    assert done.stdout == "no\n"
    told = 'choices ["no"]\nthe dialogue is forgotten\nnothing was asked yet\n4 messages from said.json\n'
    assert done.stderr.startswith(f"{told}taken back: again\n2 messages in said.json\n/help ")
    assert "\x1b" not in done.stderr


def test_mistakes_are_told_and_the_dialogue_goes_on(talker: Path, leveret: Command, tmp_path: Path) -> None:
    mistakes = {
        "/rest": "there is no /rest; did you mean /reset?",
        "/xyzzy": "there is no /xyzzy; /help lists all",
        "/set tempreture 1": "no sampling option 'tempreture'; did you mean 'temperature'?",
        "/set tempreture": "no sampling option 'tempreture'; did you mean 'temperature'?",
        "/set temperature -1": "temperature: Input should be greater than or equal to 0, not -1",
        "/set stop [": "stop: '[' is not readable YAML; write text in quotes",
        "/save": "say which file",
        "/load nowhere.json": "nowhere.json cannot be read: No such file or directory",
        "/retry": "nothing was asked yet",
    }
    typed = [*mistakes, "word " * 200, "/undo", "hello", "/undo"]
    done = leveret("chat", talker, "--set", only("yes"), cwd=tmp_path, typed="\n".join(typed))
    *told, too_long, nothing, back = done.stderr.splitlines()
    assert told == list(mistakes.values())
    assert too_long.startswith("the message is too long: ")
    assert too_long.endswith("tokens, and 255 fit")
    assert (nothing, back) == ("nothing was asked yet", "taken back: hello")  # what had no answer did not stay
    assert done.stdout == "yes\n"


def test_what_is_trimmed_is_told(talker: Path, leveret: Command, tmp_path: Path) -> None:
    typed = ["one " * 24, "two " * 24, "three " * 22, "/save said.json"]
    done = leveret("chat", talker, "--set", only("yes"), "--system", "Be brief.", cwd=tmp_path, typed="\n".join(typed))
    assert done.stdout == "yes\n" * 3
    assert done.stderr.splitlines() == [
        "the oldest 2 messages are left out of what the model reads: the context is full",
        "the oldest 4 messages are left out of what the model reads: the context is full",
        "6 messages in said.json",  # the dialogue itself is whole
    ]


def test_input_that_is_no_text_and_output_that_cannot_be_written(
    talker: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "leveret", "chat", talker, "--set", only("né"), "--max-new-tokens", "9"]
    ascii_only = {**environment, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=ascii_only, input=b"caf\xe9 \xff\n", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"n\\xe9\n", b"")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "temprature=1"], "leveret: no sampling option 'temprature'; did you mean 'temperature'?"),
        (["--set", "temperature"], "leveret: 'temperature' does not set anything; write FIELD=VALUE"),
        (["--load", "nowhere.json"], "leveret: nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_wrong_options_are_told(
    arguments: list[str], expected: str, talker: Path, leveret: Command, tmp_path: Path
) -> None:
    assert leveret("chat", talker, *arguments, cwd=tmp_path, exit_code=2).stderr == f"{expected}\n"


# --- in a terminal -------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_not_the_program(
    model: LoadedModel, talker: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    with Terminal(environment, ["chat", talker, *endless(model)], tmp_path, columns=40, kind="dumb") as terminal:
        terminal.wait_for("> ")
        terminal.send("hello\n")
        terminal.wait_for("hello\n")
        shown = terminal.wait_for("a a")
        terminal.send("\x03")
        shown += terminal.wait_for("stopped").removesuffix("stopped")
        terminal.wait_for("> ")
        terminal.send("/save said.json\n")
        terminal.wait_for("> ")
        terminal.send("\x03")  # at the prompt it is a new line
        terminal.wait_for("> ")
        terminal.send("/set choices [yes]\n/set logit_bias {}\nmore\n")
        terminal.wait_for("yes\ncontext: ")
        terminal.wait_for("> ")
        assert terminal.leave() == 0
    said = json.loads((tmp_path / "said.json").read_text())["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    assert "".join(said[1]["content"].split()) == "".join(shown.replace("^C", "").split())
    assert "\x1b" not in terminal.out
    assert max(map(len, terminal.plain.splitlines())) <= 40


def test_a_narrow_terminal_wraps_by_words_and_is_not_commanded_by_a_model(
    talker: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    answers = [
        "The quick brown fox jumps over the lazy dog, and then a\n  second line.",
        "日本語の文章は空白がないので、どこでも折り返すことができます。",
        f"before {'x' * 50} {HOSTILE}",
    ]
    lines = [
        ["The quick brown fox jumps over the lazy", "dog, and then a", "  second line."],
        ["日本語の文章は空白がないので、どこでも", "折り返すことができます。"],
        ["before", "x" * 39, "x" * 11, SPELT[:39], SPELT[39:]],
    ]
    for number, answer in enumerate(answers):
        dialogue = {"format_version": 1, "messages": [], "sampling": {"choices": [answer], "max_new_tokens": 200}}
        (tmp_path / f"{number}.json").write_text(json.dumps(dialogue))
    with Terminal(environment, ["chat", talker], tmp_path, columns=40) as terminal:
        for number, expected in enumerate(lines):
            for typed in (f"/load {number}.json", f"number {number}"):
                terminal.wait_for(">")
                terminal.send(f"{typed}\r")
                terminal.wait_for(f"{typed}\n")
            shown = terminal.wait_for("context: ").removesuffix("context: ").splitlines()
            assert shown == expected
            assert all(cell_len(line) < 40 for line in shown)
        terminal.wait_for(">")
        assert terminal.leave() == 0
    for command in ("\x1b]0;owned", "\x1b[31mred", "\x9b", "\u202e"):
        assert command not in terminal.out


def test_a_terminal_with_colours_shows_what_is_beside_the_answers_faintly(
    talker: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    options = ["--set", only("yes"), "--system", "x" * 60]
    with Terminal(environment, ["chat", talker, *options], tmp_path) as terminal:
        terminal.wait_for("leaves\n")
        for text in ("one " * 24, "two " * 24):
            terminal.wait_for(">")
            terminal.send(f"{text}\r")
            terminal.wait_for("context: ")
        terminal.wait_for(">")
        assert terminal.leave() == 0
    assert (
        "\x1b[2mthe oldest 2 messages are left out of what the model reads: the context is full\x1b[0m" in terminal.out
    )


# --- models that are not fine-tuned --------------------------------------------------------------------------


def test_a_base_model_goes_on_with_all_the_text_so_far(model: LoadedModel) -> None:
    base = LoadedModel(model.recipe, model.engine, None, "pretrain", 1, "")
    said = [("system", "A tale."), ("user", "Once"), ("assistant", " upon a time"), ("user", "there")]
    ids = base.prompt_ids([{"role": role, "content": content} for role, content in said])
    assert base.tokenizer.decode(ids) == "A tale.\nOnce upon a time\nthere"
