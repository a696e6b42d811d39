"""What the pages tell a user to type is understood. test_smoke.py runs what is about a finished run."""

import click
import pytest
import typer
from readme import ABOUT_A_RUN, commands

from leveret.cli.app import app
from leveret.recipe import load_recipe, shipped_recipes

PAGES = ["README.md", "docs/tutorial.md", "docs/how-to/chat.md", "docs/how-to/serve.md", "CONTRIBUTING.md"]
SHOWN = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[" ".join(words)[:60] for _, words in SHOWN])
def test_a_shown_command_is_one_that_there_is(page: str, words: list[str]) -> None:
    command: click.Command = typer.main.get_command(app)
    context, rest = click.Context(command), list(words)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, context, name)
    parsed = command.make_context(context.info_name, rest).params
    if (recipe := parsed.get("recipe")) in shipped_recipes():
        load_recipe(recipe, parsed.get("overrides"))


def test_the_pages_show_each_verb_about_a_run() -> None:
    assert {words[0] for page, words in SHOWN if page == "README.md"} >= ABOUT_A_RUN
