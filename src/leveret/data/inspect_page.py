"""An inspection as one page of HTML."""

from __future__ import annotations

from pathlib import Path

from leveret.data.inspect import Inspection
from leveret.data.pages import render_page, write_page


def write_html(found: Inspection, path: Path) -> None:
    """Writes the page, into a new folder if there is none. Every text on it is escaped."""
    write_page(path, render_html(found))


def render_html(found: Inspection) -> str:
    """The page's source."""
    of_filters = {each.filter: [h for h in found.histograms if h.filter == each.filter] for each in found.histograms}
    named = {report.name for report in found.filters}
    others = [each for name, group in of_filters.items() if name not in named for each in group]
    return render_page("What the filters do", _BODY, found=found, of_filters=of_filters, others=others)


_BODY = """\
<p>{{ found.documents | number }} documents ({{ found.size | megabytes }}) were read.
{{ found.kept | number }} are kept ({{ found.kept | share(found.documents) }}),
with {{ found.kept_size | megabytes }} of text. Histograms are of the documents as they were read.</p>
{% if found.filters %}
<table>
<thead><tr><th>filter, in sequence</th><th>seen</th><th>dropped</th><th class="wide">of those seen</th><th>changed</th>
<th class="wide">alone: dropped</th><th class="wide">alone: changed</th></tr></thead>
<tbody>
{% for each in found.filters %}
<tr><td><a href="#{{ each.name }}">{{ each.name }}</a></td><td>{{ each.seen | number }}</td>
<td>{{ each.dropped | number }}</td><td class="wide">{{ each.dropped | share(each.seen) }}</td>
<td>{{ each.changed | number }}</td><td class="wide">{{ each.dropped_alone | number }}</td>
<td class="wide">{{ each.changed_alone | number }}</td></tr>
{% endfor %}
</tbody>
</table>
<p class="soft keys"><span><i class="keep"></i>kept as it was</span> <span><i class="change"></i>changed</span>
<span><i class="drop"></i>dropped</span></p>
{% endif %}
{% for each in found.filters %}
<section id="{{ each.name }}">
<h2>{{ each.name }}</h2>
{% if each.seen %}
<div class="bar" role="img" aria-label="{{ each.dropped | share(each.seen) }} dropped, \
{{ each.changed | share(each.seen) }} changed">
<i class="keep" style="width: {{ 100 * (each.seen - each.dropped - each.changed) / each.seen }}%"></i>
<i class="change" style="width: {{ 100 * each.changed / each.seen }}%"></i>
<i class="drop" style="width: {{ 100 * each.dropped / each.seen }}%"></i></div>
{% endif %}
<p>Saw {{ each.seen | number }}, dropped {{ each.dropped | number }}\
{% if each.seen %} ({{ each.dropped | share(each.seen) }}){% endif %}, changed {{ each.changed | number }}.
<span class="soft">Alone it would drop {{ each.dropped_alone | number }} and change
{{ each.changed_alone | number }} of all {{ found.documents | number }}.</span></p>
{% if each.rules %}
<ul class="rules" aria-label="documents dropped, by rule">
{% for rule, count in each.rules.most_common() %}
<li>{{ rule }} <b>{{ count | number }}</b></li>
{% endfor %}
</ul>
{% endif %}
{% if each.edits %}
<p class="soft">Changes made</p>
<ul class="rules">
{% for kind, count in each.edits.most_common() %}
<li>{{ kind }} <b>{{ count | number }}</b></li>
{% endfor %}
</ul>
{% endif %}
{% if each.name in of_filters %}
<div class="grid">
{% for one in of_filters[each.name] %}{{ histogram(one) }}{% endfor %}
</div>
{% endif %}
{% if each.drops %}
<details><summary>Examples: {{ each.drops | length }} of {{ each.dropped | number }} dropped documents</summary>
{% for one in each.drops %}
<article><p><b>{{ one.why }}</b><br><span class="soft">{{ one.where }}</span></p><pre>{{ one.text }}</pre></article>
{% endfor %}
</details>
{% endif %}
{% if each.changes %}
<details><summary>Examples: {{ each.changes | length }} of {{ each.changed | number }} changed documents</summary>
{% for one in each.changes %}
<article><p class="soft">{{ one.where }}</p><pre>{% for line in one.gone %}<del>− {{ line }}</del>
{% endfor %}{% for line in one.new %}<ins>+ {{ line }}</ins>
{% endfor %}</pre></article>
{% endfor %}
</details>
{% endif %}
</section>
{% endfor %}
{% if others %}
<h2>Measures without a filter</h2>
<div class="grid">
{% for one in others %}{{ histogram(one) }}{% endfor %}
</div>
{% endif %}
"""
