"""The site as it is built: it holds what it should, its links lead somewhere, and it asks nothing of other hosts.

`make docs` runs this over what it has built, and so does every landing; `make test-long` builds first.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from readme import PAGES, ROOT

from leveret.cli.app import app
from leveret.schema import recipe_schema

pytestmark = pytest.mark.long

LOADED = {"script", "img", "iframe", "source", "video", "audio", "embed", "object", "track", "input"}
"""Elements whose address a browser loads by itself; `link` is one too."""


@dataclass
class Page(HTMLParser):
    """What a page loads, where it links to, and which places it has."""

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {name: value for name, value in attributes if value is not None}
        self.places |= {known[name] for name in ("id", "name") if name in known}
        self.loads += [known[name] for name in ("src", "data", "poster") if tag in LOADED and name in known]
        self.loads += [known["href"]] if tag == "link" and known.get("rel") not in ("next", "prev", "canonical") else []
        self.links += [known["href"]] if tag == "a" and "href" in known else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` has built, or built like that."""
    if built := os.environ.get("LEVERET_SITE"):
        return Path(built).absolute()
    folder = tmp_path_factory.mktemp("site")
    options = [
        "--fail-on-warning",
        "--keep-going",
        "--fresh-env",
        "--quiet",
        "--doctree-dir",
        str(folder / ".doctrees"),
    ]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Page()
        found[path].feed(path.read_text("utf-8"))
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    wanted = [(path, address) for path, page in pages.items() for address in page.loads]
    wanted += [
        (path, address)
        for path in [*site.rglob("*.css"), *site.rglob("*.html")]
        for address in re.findall(r"(?:@import\s+|url\()[\"']?([^\"')\s]+)", path.read_text("utf-8"))
    ]
    assert any(address.endswith(".css") or ".css?" in address for _, address in wanted)
    away = [(path.name, address) for path, address in wanted if urlsplit(address).netloc]
    assert away == []
    scripts = [path.name for path in site.rglob("*.js") if re.search(r"(import|fetch)\([\"']https?:", path.read_text())]
    assert scripts == []


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            there = target.is_file() and (
                not to.fragment or target not in pages or unquote(to.fragment) in pages[target].places
            )
            broken += [] if there else [f"{path.relative_to(site)} -> {link}"]
    assert broken == []


def test_every_page_is_reached_from_the_first(site: Path, pages: dict[Path, Page]) -> None:
    linked = {(site / urlsplit(link).path).resolve() for link in pages[site / "index.html"].links if "://" not in link}
    expected = {
        site / Path(page).relative_to("docs").with_suffix(".html") for page in PAGES if page.startswith("docs/")
    }
    assert {path.relative_to(site) for path in expected - linked - {site / "index.html"}} == set()


def verbs(command: object, name: str = "leveret") -> Iterator[str]:
    yield name
    for verb, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, f"{name} {verb}")


def test_the_reference_has_every_verb_key_and_function(site: Path, pages: dict[Path, Page]) -> None:
    commands = pages[site / "reference/commands.html"]
    expected = set(verbs(typer.main.get_command(app)))
    assert {name for name in expected if f"Usage: {name} " not in commands.text} == set()
    recipe = pages[site / "reference/recipe.html"].text
    keys = {key for config in recipe_schema()["$defs"].values() for key in config["properties"]} - {"kind"}
    assert {key for key in keys if not re.search(rf"\b{key}\b", recipe)} == set()
    assert {"leveret.load", "leveret.api.LoadedModel.generate"} <= pages[site / "reference/python.html"].places


def test_editors_find_the_schema_where_it_stays(site: Path) -> None:
    assert json.loads((site / "recipe.schema.json").read_text()) == recipe_schema()
