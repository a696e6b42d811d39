"""What the pages tell a user to type is understood: every verb, option and shipped recipe that they name is there."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer
from readme import ABOUT_A_RUN, PAGES, ROOT, commands

from leveret.cli.app import app
from leveret.recipe import load_recipe, shipped_recipes

IN_BLOCKS = [(page, words) for page in PAGES for words in commands(page, inline=False)]
IN_LINES = [(page, words) for page in PAGES for words in commands(page, fenced=False)]
NAMES = re.compile(r"\b[A-Z]{2,}\b(?!\.md)")
"""Stands for what the reader puts in, such as NAME.yaml; README.md is a file."""
Parse = Callable[[list[str]], dict[str, Any]]
PLACE = re.compile(r"`((?:docs|src|tests|benchmarks)/[\w./*-]+)`")


@pytest.fixture(scope="module")
def understood() -> Parse:
    """What the command line makes of the words after `leveret`, without doing it; raises what it would answer."""
    seen: dict[str, Any] = {}

    def only_parses(command: Any) -> Any:
        for inner in getattr(command, "commands", {}).values():
            only_parses(inner)
        command.callback = lambda **parsed: seen.update(parsed)  # a group may have one too
        return command

    command = only_parses(typer.main.get_command(app))

    def parse(words: list[str]) -> dict[str, Any]:
        seen.clear()
        command.main(words, "leveret", standalone_mode=False)
        return dict(seen)

    return parse


def named(shown: list[tuple[str, list[str]]]) -> list[Any]:
    return [pytest.param(page, words, id=f"{page}: {' '.join(words)[:60]}") for page, words in shown]


@pytest.mark.parametrize(("page", "words"), named(IN_BLOCKS))
def test_a_command_of_a_block_is_one_that_there_is(page: str, words: list[str], understood: Parse) -> None:
    parsed = understood(words)
    if (recipe := parsed.get("recipe")) in shipped_recipes():
        load_recipe(recipe, parsed.get("overrides"))


@pytest.mark.parametrize(("page", "words"), named(IN_LINES))
def test_a_command_within_a_sentence_is_one_that_there_is(page: str, words: list[str], understood: Parse) -> None:
    """It may name no more than the verb."""
    try:
        test_a_command_of_a_block_is_one_that_there_is(page, words, understood)
    except Exception as error:
        if not re.match(r"Missing|Option .* requires an argument", str(error)):
            raise


@pytest.mark.parametrize(
    "words", ["rune quickstart", "run quickstart --smoek", "run", "export onnx a b", "serve quickstart --port many"]
)
def test_a_command_that_there_is_not_is_found_out(words: str, understood: Parse) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|valid integer"):
        understood(words.split())


def test_the_pages_show_each_verb_about_a_run() -> None:
    assert {words[0] for words in commands("README.md")} >= ABOUT_A_RUN


def test_the_pages_name_no_file_that_is_not_there() -> None:
    named = {(page, name) for page in PAGES for name in PLACE.findall((ROOT / page).read_text("utf-8"))}
    assert [(page, name) for page, name in sorted(named) if not NAMES.search(name) and not list(ROOT.glob(name))] == []
