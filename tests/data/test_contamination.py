"""Sets are read as their examples' texts; documents that hold one are dropped or cut; the report names what it saw."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.data.contamination import (
    NAME,
    Decontaminator,
    audit_contamination,
    contamination,
    example_text,
    facts,
    index_sets,
    read_sets,
    render,
    without,
)
from leveret.data.overlap import DecontaminateConfig, NgramIndex, Passage
from leveret.data.sources import Document
from leveret.errors import UserError

QUESTION = "Why do two magnets that lie on a wooden table jump apart when one of them is turned round?"
ANSWER = "Equal poles repel each other."
STORY = "The ferry left at six with nobody aboard but the pilot, his dog and a crate of yellow lamps from the island."


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder of two sets."""
    write(
        tmp_path / "bench" / "physics.jsonl",
        {"query": "Is it?", "choices": ["No.", "Yes."], "gold": 1},
        {"query": f"Question: {QUESTION}", "choices": ["They are afraid.", ANSWER], "gold": 1},
    )
    write(
        tmp_path / "bench" / "stories.v2.jsonl",
        {"context": STORY.removesuffix(" island."), "continuation": "island"},
        {"context": "All night the snow kept falling on the roofs, and at dawn the town was", "continuation": "white"},
    )
    return tmp_path


# --- sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"query": "Question: Who?", "choices": ["he", "she"], "gold": 1}, "Who?\nshe"),
        ({"query": "Question: What bends?\nChoices:\nA. glass\nB. a bow\nAnswer:", "choices": ["A", "B"], "gold": 1},
         "What bends?\n\n\na bow"),
        ({"query": "Passage: It rains.\nQuestion: is it dry?", "choices": ["no", "yes"], "gold": 0},
         "It rains.\n is it dry?\nno"),
        ({"context_options": ["Ann fell as Ann", "Ann fell as Eve"], "continuation": "slipped.", "gold": 0},
         "Ann fell as Ann\nslipped."),
        ({"context": "The sky was", "continuation": "blue", "id": 7}, "The sky was\nblue"),
        ({"question": "2 and 2?", "answer": "It is 4.\n#### 4"}, "2 and 2?\nIt is 4.\n#### 4"),
        ({"question": "Which?", "choices": ["this", "that"], "answer": 1}, "Which?\nthat"),
        ({"question": "Which?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "A"},
         "Which?\nthis\nthat"),
        ({"output": "ls", "input": "", "instruction": "List files."}, "List files.\n\nls"),
        ({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}, "Hello\nHi"),
    ],
)  # fmt: skip
def test_the_text_of_an_example_is_its_question_and_right_answer(row: dict[str, Any], text: str) -> None:
    assert example_text(row) == text


def test_fields_can_be_chosen() -> None:
    row = {"query": "Who?", "note": "Nobody knows.", "choices": ["he", "she"], "gold": 1}
    assert example_text(row, ["note", "choices"]) == "Nobody knows.\nshe"
    with pytest.raises(UserError, match=r"x:3: no 'title'.*query, note"):
        example_text(row, ["note", "title"], "x:3")
    with pytest.raises(UserError, match=r"x:3: no known field.*'fields' or with --field: note"):
        example_text({"note": "a"}, where="x:3")


def test_every_file_is_a_set(bench: Path) -> None:
    write(bench / "more" / "physics.jsonl", {"text": "Something else."})
    assert [passage[:2] for passage in read_sets(["bench"], bench)] == [
        ("physics", 0), ("physics", 1), ("stories", 0), ("stories", 1)
    ]  # fmt: skip
    assert [passage.set for passage in read_sets(["more", "bench/p*"], bench)] == [
        "more/physics.jsonl", "bench/physics.jsonl", "bench/physics.jsonl"
    ]  # fmt: skip
    elsewhere = read_sets([str(bench / "more"), str(bench / "bench" / "p*")], bench / "bench" / "inside")
    assert len({passage.set for passage in elsewhere}) == 2
    with pytest.raises(UserError, match="nowhere"):
        index_sets(["nowhere.jsonl"], bench)


# --- documents -----------------------------------------------------------------------------------------------

BEFORE = "Ships are old. They say so here.\n"
AFTER = " It came back empty in the evening of the next day, but for the dog.\nNobody whom we asked was surprised!"


def decontaminator(bench: Path, **changes: Any) -> Decontaminator:
    return Decontaminator(DecontaminateConfig(sets=["bench"], **changes), bench)


def test_clean_documents_stay_as_they_are_and_others_are_dropped(bench: Path) -> None:
    judge = decontaminator(bench)
    clean = "Is it? Yes. " + " ".join(STORY.split()[:12])
    assert judge(clean).text == clean
    assert judge(clean).changed == ()
    verdict = judge(f"{BEFORE}{STORY.upper()}{AFTER}")
    assert (verdict.text, verdict.by, verdict.why) == (None, NAME, "stories: example 1")
    assert judge(QUESTION).by == NAME
    assert decontaminator(bench, ngram=19)(f"{BEFORE}{STORY.replace('yellow', 'red')}{AFTER}").text is not None


def test_cut_takes_whole_sentences_and_nothing_else(bench: Path) -> None:
    judge = decontaminator(bench, action="cut")
    cut = judge(f"{BEFORE}I read: “{STORY}”{AFTER}")
    assert cut.text == BEFORE + AFTER[1:]
    assert (cut.changed, cut.edits) == ((NAME,), {NAME: {"stories": 1}})
    lines = ["# A title", f"- {QUESTION.lower()}", "- an item that is long enough to outweigh all that is cut out"]
    lines += ["- and another one, so that more than half is left"]
    assert judge("\n".join(lines)).text == "\n".join([lines[0], "", *lines[2:]])
    assert judge(f"{QUESTION} {ANSWER} {STORY}").text is None
    short = judge(f"Now: {STORY} The end.")
    assert (short.text, short.by, short.why) == (None, NAME, "stories: example 1")


@given(st.lists(st.sampled_from([" ", ".", ". ", "!” ", "\n", "?\n"]), min_size=1, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_left_are_the_sentences_without_a_part_in_a_span(ends: list[str], data: st.DataObject) -> None:
    sentences = [""]
    for number, end in enumerate(ends):
        sentences[-1] += f"Word{number}" + end.removesuffix("\n")
        sentences += ["\n", ""] if end.endswith("\n") else [""] if end in (". ", "!” ") else []
    text = "".join(sentences)
    place = st.integers(0, len(text))
    spans = [(start, end) for start, end in data.draw(st.lists(st.tuples(place, place), max_size=3)) if start < end]
    expected, start = "", 0
    for sentence in sentences:
        end = start + len(sentence)
        expected += "" if any(first < end and last > start for first, last in spans) else sentence
        start = end
    assert without(text, spans) == expected


def test_facts_change_with_the_sets(bench: Path) -> None:
    config = DecontaminateConfig(sets=["bench"])
    before = facts(config, bench)
    assert json.loads(json.dumps(before)) == before
    assert facts(DecontaminateConfig(sets=["bench"], ngram=8), bench) != before
    write(bench / "bench" / "physics.jsonl", {"query": "Is it?", "choices": ["No."], "gold": 0})
    assert facts(config, bench) != before


# --- the audit -----------------------------------------------------------------------------------------------


def corpus() -> Iterator[Document]:
    yield Document("Nothing of interest stands here.", "web")
    yield Document(f"{BEFORE}{STORY}{AFTER} {STORY}", "web", "web.jsonl:2")
    yield Document(f"{STORY}\n\n{QUESTION}", "books")


def test_the_report_counts_examples_and_documents_and_shows_passages(bench: Path) -> None:
    report = audit_contamination(corpus(), ["bench"], base_dir=bench)
    told = report.facts()
    assert json.loads(json.dumps(told)) == told
    assert (told["documents"], told["ngram"]) == (3, 13)
    physics, stories = told["sets"]["physics"], told["sets"]["stories"]
    assert (physics["examples"], physics["too_short"], physics["contaminated"], physics["share"]) == (2, 1, 1, 1.0)
    assert (stories["contaminated"], stories["share"], stories["documents"], stories["rows"]) == (1, 0.5, 2, [1])
    assert stories["passages"] == [
        {"row": 1, "where": "web.jsonl:2", "start": len(BEFORE), "text": STORY.removesuffix(".")}
    ]
    assert physics["passages"][0]["where"] == "books"
    text = render(report, width=40)
    assert text.startswith("3 documents, 0.0 million characters, searched for runs of 13 words")
    assert "physics                          2          1        1  100.00%          1" in text
    assert f"stories, example 1: web.jsonl:2, character {len(BEFORE)}\n  {STORY[:39]}…" in text


def test_a_clean_corpus_has_a_report_too(bench: Path) -> None:
    report = contamination([], index_sets(["bench"], bench))
    assert all(found["contaminated"] == found["documents"] == 0 for found in report.facts()["sets"].values())
    assert render(report).count("\n") == 4


def test_ignored_runs_are_told() -> None:
    standing = " ".join(f"standing{number}" for number in range(13))
    index = NgramIndex.build(Passage("s", number, standing) for number in range(11))
    assert render(contamination([Document(standing, "x")], index)).endswith(
        "ignored: 1 runs that stand in more than 10 examples\nnot searched for: 11 examples that have no other"
    )


def test_at_most_so_many_passages_are_kept_of_each_set() -> None:
    random_ = random.Random(1)
    texts = [" ".join(random_.choices("abcdefgh", k=20)) for _ in range(50)]
    index = NgramIndex.build(Passage("set", number, text) for number, text in enumerate(texts))
    report = contamination((Document(text, "x") for text in texts * 2), index, shown=4)
    found = report.sets["set"]
    assert (len(found.examples), found.documents) == (50, 100)
    assert [passage.row for passage in found.passages] == [1, 2, 3, 4]


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_all_benchmarks_find_themselves_in_little_memory() -> None:
    base = Path(os.environ["LEVERET_DATA"])
    passages = list(read_sets(["bench"], base))
    index = NgramIndex.build(passages)
    assert index.nbytes < 64e6
    assert sum(coverage.short for coverage in index.sets.values()) < 0.01 * len(passages)
    for passage in passages[::50]:
        if len(passage.text.split()) > 8:
            assert passage[:2] in {(one.set, one.number) for one in index.find(f"Read: {passage.text.upper()}!")}
