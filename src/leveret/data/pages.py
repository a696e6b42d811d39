"""What the pages that show data have in common: their look, their histograms, and that they need nothing else: no
script, no font, no picture from elsewhere."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from leveret.data.inspect import Histogram, in_words, megabytes, number, share, words

WIDTH, HEIGHT = 400, 90
"""Of a histogram, in its own units."""


class Bar(NamedTuple):
    """A bin of a histogram, drawn; `out` if its middle is out of bounds."""

    x: float
    y: float
    width: float
    height: float
    out: bool
    says: str


def write_page(path: Path, source: str) -> None:
    """Writes a page, into a new folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def render_page(title: str, body: str, **values: Any) -> str:
    """The page's source. `body`: Jinja that sees the values, the filters share, megabytes, words and number, and the
    macro histogram; every text in it is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": share, "megabytes": megabytes, "words": words, "number": number}
    shared = {"bars": bars, "lines": lines, "in_words": in_words, "WIDTH": WIDTH, "HEIGHT": HEIGHT}
    page = environment.from_string(_HEAD + body + "</body>\n</html>\n")
    return page.render(title=title, style=_STYLE, **shared, **values)


def bars(each: Histogram) -> list[Bar]:
    """The bins that are not empty; the smallest is still seen."""
    top = max(each.counts)
    step = WIDTH / len(each.counts)
    found = []
    for index, count in enumerate(each.counts):
        low, high = each.edges[index], each.edges[index + 1]
        if count:
            height = max(HEIGHT * count / top, 2.0)
            out = not each.least <= (low + high) / 2 <= each.most
            says = f"{number(low)} to {number(high)}: {count:,}"
            found.append(Bar(round(index * step, 1), round(HEIGHT - height, 1), step - 1, round(height, 1), out, says))
    return found


def lines(each: Histogram) -> list[float]:
    """Where the bounds stand, from the left."""
    return [round(WIDTH * each.place(bound), 1) for bound in (each.least, each.most) if isfinite(bound)]


_STYLE = """\
:root { color-scheme: light dark; --paper: #fcfbf9; --card: #fff; --ink: #23211e; --soft: #6a655e; --rule: #e3ded6;
  --keep: #5b8a7b; --change: #d1a23c; --drop: #c65a41; --code: #f4f1ec; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #191817; --card: #222120; --ink: #e8e4de; --soft: #a09a91; --rule: #3a3835;
    --keep: #6fa595; --change: #d8b052; --drop: #e07a60; --code: #1c1b1a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .3rem 0; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
.soft, figcaption, .axis { color: var(--soft); }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .4rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: baseline; }
th { font-weight: 500; font-size: .8rem; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.bar { display: flex; height: .7rem; border-radius: .2rem; overflow: hidden; background: var(--rule); margin: .4rem 0; }
.bar i { display: block; min-width: 0; }
.keep { background: var(--keep); } .change { background: var(--change); } .drop { background: var(--drop); }
.keys span { white-space: nowrap; margin-right: .8rem; }
.keys i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .35rem; }
ul.rules { display: flex; flex-wrap: wrap; gap: .3rem .5rem; list-style: none; padding: 0; margin: .5rem 0; }
.rules li { background: var(--code); border: 1px solid var(--rule); border-radius: 1rem; padding: 0 .6rem;
  font-size: .85rem; }
.grid { display: grid; gap: .8rem; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
figure { margin: 0; padding: .7rem .8rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: .4rem; }
figure b { font-weight: 600; font-size: .9rem; }
figcaption, .axis { font-size: .8rem; font-variant-numeric: tabular-nums; }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--soft); }
svg { display: block; width: 100%; height: 5.5rem; margin-top: .4rem; overflow: visible; }
rect { fill: var(--keep); } rect.out { fill: var(--drop); }
line { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; vector-effect: non-scaling-stroke; }
details { border: 1px solid var(--rule); border-radius: .4rem; background: var(--card); margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .8rem; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--rule); padding: .6rem .8rem; }
article p { overflow-wrap: anywhere; font-size: .9rem; }
pre { margin: .4rem 0 0; padding: .6rem; background: var(--code); border-radius: .3rem; max-height: 18rem;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; font: .82rem/1.45 ui-monospace, monospace; }
del { color: var(--drop); } ins { color: var(--keep); } del, ins { text-decoration: none; }
@media (max-width: 40rem) { body { padding-top: 1rem; } .wide { display: none; } }
"""

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
{% macro histogram(each) %}
<figure>
  <b>{{ each.measure | words }}</b>
  <svg viewBox="0 0 {{ WIDTH }} {{ HEIGHT }}" preserveAspectRatio="none" role="img"
    aria-label="Histogram of {{ each.measure | words }}, {{ each.edges[0] | number }} to {{ each.edges[-1] | number }}">
  {% for bar in bars(each) %}
    <rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}"\
{{ ' class="out"' | safe if bar.out }}><title>{{ bar.says }}</title></rect>
  {% endfor %}
  {% for x in lines(each) %}
    <line x1="{{ x }}" x2="{{ x }}" y1="0" y2="{{ HEIGHT }}"/>
  {% endfor %}
  </svg>
  <div class="axis"><span>{{ each.edges[0] | number }}</span>
  {% if each.logarithmic %}<span>logarithmic</span>{% endif %}
  <span>{{ each.edges[-1] | number }}</span></div>
  <figcaption>median {{ each.median | number }}{% if in_words(each) %} · {{ in_words(each) }}\
{% if each.outside %} · {{ each.outside | number }} outside{% endif %}{% endif %}</figcaption>
</figure>
{% endmacro %}
<h1>{{ title }}</h1>
"""
