"""A look at what a stage learns from as one page of HTML."""

from __future__ import annotations

from math import inf
from pathlib import Path

from leveret.data.inspect import histogram
from leveret.data.pages import render_page, write_page
from leveret.posttraining.look import Look, Shown, spans


def write_html(found: Look, extra: Shown | None, path: Path) -> None:
    """Writes the page, into a new folder if there is none. Every text on it is escaped."""
    write_page(path, render_html(found, extra))


def render_html(found: Look, extra: Shown | None) -> str:
    """The page's source. `extra`: an example that is too long."""
    fill = [100.0 * share for share in found.fill.tolist()]
    return render_page(
        f"What {found.stage} learns from",
        _BODY,
        found=found,
        extra=extra,
        spans=spans,
        histograms=[
            histogram("", "tokens of a document", found.lengths.tolist(), (-inf, inf)),
            histogram("", "how full a row is, percent", [*fill], (-inf, inf)),
        ],
    )


_BODY = """\
<style>
.learnt { background: color-mix(in srgb, var(--keep) 28%, transparent); border-bottom: 2px solid var(--keep); }
.special { color: color-mix(in srgb, var(--change) 60%, var(--ink)); font-weight: 600; }
.document { max-height: none; margin: 0; line-height: 1.7; }
.many { display: grid; gap: .3rem 1rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.many > * { min-width: 0; }
.row section { border-top: 2px dashed var(--soft); }
h3 { font-size: .95rem; margin: .8rem 0 .3rem; overflow-wrap: anywhere; }
h3 span { font-weight: 400; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
dt { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; } dd { margin: 0; }
.keys { position: sticky; top: 0; padding: .5rem 0; background: var(--paper); font-size: .9rem; }
.keys label { cursor: pointer; white-space: nowrap; }
:has(#borders:checked) .document span { border-left: 1px solid var(--soft); padding-left: 1px; }
</style>
{% macro document(shown) %}
<section><h3>{{ shown.title }} <span>{{ shown.counts }}</span></h3>
<pre class="document">{% for text, token, count in spans(shown.tokens) %}
<span{% if token.learnt %} class="learnt"{% elif token.special %} class="special"{% endif %}\
{% if count > 1 %} title="{{ count }} tokens"{% endif %}>{{ text }}</span>{% endfor %}</pre></section>
{% endmacro %}
<dl>
{% for what, count in found.fates() %}
<dt>{{ count | number }}</dt><dd>{{ found.kind ~ " " if loop.first }}{{ what }}</dd>
{% endfor %}
</dl>
{% for fact in found.facts() %}
<p>{{ fact }}</p>
{% endfor %}
<div class="grid">
{% for each in histograms %}{{ histogram(each) }}{% endfor %}
</div>
<p class="keys"><span class="learnt">learnt</span> <span>only read</span> <span class="special">special token</span>
<label><input type="checkbox" id="borders"> show where tokens begin</label></p>
<h2>Examples, evenly spread</h2>
<div class="many">
{% for shown in found.examples %}{{ document(shown) }}{% endfor %}
</div>
{% if extra %}
<h2>Too long for a row</h2>
{{ document(extra) }}
{% endif %}
<h2>Row {{ found.row.number | number }} of {{ found.fill | length | number }}, as it is packed</h2>
<p class="soft">No document sees another.{% if found.row.empty %} {{ found.row.empty | number }} places at the end are
filled up, and teach nothing.{% endif %}</p>
<div class="row">
{% for shown in found.row.documents %}{{ document(shown) }}{% endfor %}
</div>
"""
