"""What has to travel to another machine: this program, the recipe as resolved, and the files that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret import __version__
from leveret.errors import UserError
from leveret.planning.launch.plan import Launch
from leveret.recipe import Recipe, anchored, parse_recipe, to_yaml

INPUTS = "/inputs"
"""Where the recipe's files lie over there."""
RUNS = "/runs"
"""Where runs and shards lie over there: what must outlive the machine."""
PROGRAM = "/opt/leveret"
GLOB = re.compile(r"[*?\[]")
STAYS = ("--run-dir", "--from", "--copy-data")
"""Options that name places of this machine, or that what is launched there says itself."""


@dataclass(frozen=True)
class Cargo:
    """recipe: its text, with paths as they are over there. inputs: files and folders here, by their paths there.
    program: what pip installs there. trees: this program's files, by their names in the launch folder; none where it
    comes from an index."""

    recipe: str
    inputs: dict[str, str]
    program: str
    trees: dict[str, Path]


def cargo(launch: Launch) -> Cargo:
    """All that a machine without anything needs.

    Raises:
        UserError: an option means a place on this machine.
    """
    if found := [word for word in launch.words if word.partition("=")[0] in STAYS]:
        raise UserError(f"{found[0]} means a place on this machine; on another the run is in {RUNS}/{launch.name}")
    recipe, inputs = _moved(anchored(launch.recipe, launch.base))
    program, trees = _program()
    return Cargo(to_yaml(recipe), inputs, program, trees)


def remote_words(launch: Launch) -> list[str]:
    """Of leveret's command line over there; overrides are in the recipe already."""
    options = [word for number, word in enumerate(launch.words) if number >= first_option(launch.words)]
    return [launch.verb, "/work/recipe.yaml", "--run-dir", f"{RUNS}/{launch.name}", *options]


def first_option(words: list[str]) -> int:
    """Where options begin after overrides."""
    return next((number for number, word in enumerate(words) if word.startswith("-")), len(words))


def _moved(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """The recipe with whole paths of this machine replaced, and what lies where then."""
    there: dict[str, str] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        if not isinstance(value, str) or not value.startswith("/"):
            return value
        if "," in value and not Path(value).exists():  # a pair of files
            return ",".join(moved(part) for part in value.split(","))
        at, rest = _at(Path(value))
        if not at.exists():
            return value
        place = there.setdefault(str(at), f"{INPUTS}/{len(there)}/{at.name}")
        return f"{place}/{rest}" if rest else place

    content = recipe.model_dump(mode="json")
    kept = {key: content[key] for key in ("description", "sample_prompts", "generation")}  # texts, no paths
    recipe = parse_recipe(moved(content) | kept, "the recipe for another machine")
    return recipe, {place: path for path, place in there.items()}


def _at(path: Path) -> tuple[Path, str]:
    """The part of a path before any glob, and the rest."""
    parts = path.parts
    whole = next((number for number, part in enumerate(parts) if GLOB.search(part)), len(parts))
    if path.exists():
        whole = len(parts)
    return Path(*parts[:whole]), "/".join(parts[whole:])


def _program() -> tuple[str, dict[str, Path]]:
    """This very program where it is a checkout, else its version from the index."""
    package = Path(__file__).parents[2]
    checkout = package.parents[1]
    if not (checkout / "pyproject.toml").is_file():
        return f"leveret=={__version__}", {}
    files = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    trees = {f"leveret/{name}": checkout / name for name in files}
    return f"-c {PROGRAM}/constraints.txt {PROGRAM}", trees | {"leveret/src/leveret": package}
