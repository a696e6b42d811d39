"""The site that `make docs` builds out of these pages: Sphinx, MyST for Markdown, the theme Furo.

Pages stay plain Markdown. A comment `<!-- generated: NAME -->` in one of them becomes what `generated.py` makes out of
the code, and a page named as code (`docs/data.md`) becomes a link to it.
"""

import json
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import generated

import leveret

project = "Leveret"
release = version = leveret.__version__
copyright = "the authors of Leveret, MIT licence"
exclude_patterns = ["README.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4
default_role = "code"  # docstrings mark code with one backtick, as Markdown does
nitpicky = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
add_module_names = False
highlight_language = "text"

html_theme = "furo"
html_title = "Leveret"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}

_GENERATED = re.compile(r"<!-- generated: (\w+) -->")
_PAGE = re.compile(r"(?<!\[)`docs/([\w/-]+)\.md`")


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts in what is made from the code, and links to the pages that the text names."""
    text = _GENERATED.sub(lambda found: generated.PAGES[found[1]](), source[0])
    source[0] = _PAGE.sub(r"[\1](/\1.md)", text)


def _publish_schema(app: Sphinx, error: Exception | None) -> None:
    """At a place that stays: editors are pointed to it."""
    if error is None:
        (Path(app.outdir) / "recipe.schema.json").write_text(json.dumps(generated.SCHEMA, indent=2))


def setup(app: Sphinx) -> None:
    app.connect("source-read", _complete)
    app.connect("build-finished", _publish_schema)
