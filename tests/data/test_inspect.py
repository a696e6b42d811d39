"""What an inspection counts, shows and draws."""

import json
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from leveret.data.config import SourceConfig
from leveret.data.filters.config import FilterConfig
from leveret.data.inspect import Inspection, histogram, inspect, inspect_sources, render_terminal, sparkline
from leveret.data.inspect_page import render_html, write_html
from leveret.data.sources import Document
from leveret.errors import UserError

INF = float("inf")
FILTERS = TypeAdapter(list[FilterConfig]).validate_python(
    [
        {"kind": "pii"},
        {"kind": "length", "least_words": 4},
        {"kind": "c4", "least_sentences": 1},
        {"kind": "length", "most_words": 12},
    ]
)
TEXTS = [
    "The first of them is all right.",
    "Too short.",
    "Write a letter to jo@example.org or leave it.",
    "<script>alert('you & me')</script> { of code }",
    "A heading\nA sentence that is a little longer than the others are, with words and words and words.",
    "Menu\nA heading\nOnly this line is a sentence.",
]


@pytest.fixture(scope="module")
def found() -> Inspection:
    documents = (Document(text, "texts", f"texts.jsonl:{number}") for number, text in enumerate(TEXTS, start=1))
    return inspect(documents, FILTERS, Path(), limit=100)


def test_filters_are_counted_in_sequence_and_alone(found: Inspection) -> None:
    counts = {
        report.name: (report.seen, report.dropped, report.changed, report.dropped_alone, report.changed_alone)
        for report in found.filters
    }
    assert counts == {
        "pii": (6, 0, 1, 0, 1),
        "length": (6, 1, 0, 1, 0),
        "c4": (5, 1, 2, 2, 2),
        "length-2": (4, 1, 0, 1, 0),
    }
    assert (found.documents, found.kept) == (6, 3)
    assert found.size == sum(map(len, TEXTS))
    assert found.kept_size == len(TEXTS[0] + TEXTS[2] + "Only this line is a sentence.") - len("jo@example.org") + 7


def test_examples_say_where_and_why(found: Inspection) -> None:
    pii, short, c4, long = found.filters
    assert [(drop.where, drop.why, drop.text) for drop in short.drops] == [
        ("texts.jsonl:2", "least words: 2 < 4", "Too short.")
    ]
    assert [(drop.where, drop.why) for drop in c4.drops] == [("texts.jsonl:4", "curly bracket")]
    assert [(drop.where, drop.why) for drop in long.drops] == [("texts.jsonl:5", "most words: 17 > 12")]
    assert [(change.gone, change.new) for change in pii.changes] == [
        ([TEXTS[2]], ["Write a letter to <email> or leave it."])
    ]
    assert [change.gone for change in c4.changes] == [["A heading"], ["Menu", "A heading"]]
    assert (c4.rules, c4.edits) == ({"curly bracket": 1}, {"no end mark": 3})


def test_measures_are_of_the_documents_as_they_were_read(found: Inspection) -> None:
    drawn = {(each.filter, each.measure): each for each in found.histograms}
    words = drawn["length-2", "words"]
    assert (sum(words.counts), words.most, words.outside, words.median) == (6, 12, 1, 7.5)
    assert drawn["length", "words"].outside == 1
    assert drawn["gopher-quality", "mean_word_length"].outside == 0  # not among the filters: drawn without bounds


def test_few_examples_of_each_rule_are_kept() -> None:
    texts = ["no"] * 40 + ["word " * 50] * 40
    filters = TypeAdapter(list[FilterConfig]).validate_python([{"kind": "length", "least_words": 2, "most_words": 9}])
    report = inspect((Document(text, "s", "w") for text in texts), filters, Path(), 1000).filters[0]
    assert report.dropped == 80
    assert [drop.why for drop in report.drops] == ["least words: 1 < 2"] * 3 + ["most words: 50 > 9"] * 3


def test_histogram_bins_bounds_and_scale() -> None:
    shares = histogram("f", "share", [0.0, 0.0, 0.5], (-INF, 0.2))
    assert (shares.edges[0], shares.edges[-1], sum(shares.counts), shares.outside) == (0, 0.5, 3, 1)
    assert (shares.logarithmic, shares.place(0.25)) == (False, 0.5)
    words = histogram("f", "words", [0, 10, 10_000], (1, INF))
    assert (words.logarithmic, words.edges[0], words.edges[-1], sum(words.counts)) == (True, 1, pytest.approx(1e4), 3)
    assert words.place(100) == pytest.approx(0.5)
    assert histogram("f", "flat", [0.0, 0.0], (-INF, INF)).counts[0] == 2
    scores = histogram("f", "score", [-INF, -4.0, 2.0, INF, INF], (-3, INF))
    assert (scores.edges[0], scores.edges[-1], scores.counts[0], scores.counts[-1]) == (-4, 2, 2, 3)
    assert (scores.outside, scores.median) == (2, 2)
    assert histogram("f", "score", [-INF], (-INF, INF)).counts[0] == 1
    assert sparkline([0, 1, 8, 4], 4) == " ▁█▄"


def test_sources_are_read_in_equal_shares(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"text {number} of {name}"}) for number in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    sources = [SourceConfig(paths=["a.jsonl"]), SourceConfig(paths=["b.jsonl"])]
    filters = TypeAdapter(list[FilterConfig]).validate_python([{"kind": "length", "least_words": 99}])
    found = inspect_sources(sources, filters, tmp_path, {}, limit=4)
    texts = [drop.text for drop in found.filters[0].drops]
    assert found.documents == 4
    assert texts == ["text 0 of a", "text 1 of a", "text 0 of b"]
    assert found.filters[0].drops[2].where.endswith("b.jsonl:1")
    with pytest.raises(UserError, match="no such file"):
        inspect_sources([SourceConfig(paths=["none.jsonl"])], filters, tmp_path, {})


def test_terminal_shows_counts_measures_and_examples(found: Inspection) -> None:
    from rich.console import Console

    written = StringIO()
    Console(width=160, file=written).print(render_terminal(found))
    shown = written.getvalue()
    for expected in (
        "6 documents (0.0 MB) read, 3 kept (50.0%)",
        "length-2: words",
        "at most 12",
        "curly bracket 1",
        "length drops texts.jsonl:2",
        "+ Write a letter to <email> or leave it.",
    ):
        assert expected in shown


class Outline(HTMLParser):
    """The elements of a page, and whether each that was opened is closed in turn."""

    VOID = frozenset({"meta", "br", "rect", "line"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_escaped_and_needs_nothing_else(found: Inspection, tmp_path: Path) -> None:
    write_html(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    outline = Outline(page.replace("/></rect>", "></rect>"))
    tags = [tag for tag, _ in outline.seen]
    assert outline.open == []
    assert "script" not in tags
    assert not any("src" in attrs or (attrs.get("href") or "#")[0] != "#" for _, attrs in outline.seen)
    assert "&lt;script&gt;alert(&#39;you &amp; me&#39;)&lt;/script&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert tags.count("svg") == len(found.histograms)
    assert {attrs["id"] for tag, attrs in outline.seen if tag == "section"} == {r.name for r in found.filters}
    assert any(tag == "rect" and attrs.get("class") == "out" for tag, attrs in outline.seen)


def test_page_without_filters_or_documents_is_still_a_page() -> None:
    page = render_html(inspect([], [], Path(), 10))
    assert Outline(page).open == []
    assert "0 documents" in page
