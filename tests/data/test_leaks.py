"""Planted leaks of every kind are found, near misses are not, and the audit is fast enough to run always."""

import os
import random
import time
from pathlib import Path

import pytest

from leveret.data.examples import Example, Message, one_turn, read_examples
from leveret.data.leaks import Leak, content_words, find_leaks, find_leaks_in_text, leaking, normalise, report
from leveret.data.sources import Document

TRAIN = [
    ("Find all .log files under /var/log older than 30 days.", "find /var/log -name '*.log' -mtime +30"),
    ("Count the lines in report.txt.", "wc -l report.txt"),
    ("Extract backup.tar.gz into /srv/restore.", "tar -xzf backup.tar.gz -C /srv/restore"),
    ("Show which process listens on port 8080.", "lsof -i :8080"),
    ("Go to the parent directory.", "cd .."),
]

# (instruction, command, the leak expected, if any)
HELDOUT = [
    ("Count the lines in report.txt.", "wc -l report.txt", Leak("verbatim", 0, 1)),
    ("Count the lines in report.txt.", "cat report.txt | wc -l", Leak("verbatim", 1, 1, same_response=False)),
    (" extract  Backup.tar.gz into\u00a0/srv/restore", "tar -xzf  backup.tar.gz -C /srv/restore",
     Leak("normalised", 2, 2)),
    ('"Go to the parent directory"', "cd -", Leak("normalised", 3, 4, same_response=False)),
    ("Please find .log files older than 30 days under /var/log", "find /var/log -name '*.log' -mtime +30",
     Leak("near-duplicate", 4, 0)),
    # Near misses: another slot value, another wording of the same command, the same words for another command.
    ("Find all .log files under /var/log older than 31 days.", "find /var/log -name '*.log' -mtime +31", None),
    ("Find all .log files under /opt/log older than 30 days.", "find /opt/log -name '*.log' -mtime +30", None),
    ("Count the lines in report2.txt.", "wc -l report2.txt", None),
    ("Who has port 8080 open?", "lsof -i :8080", None),
    ("Show processes which listen on the port 8080 now.", "ss -ltnp 'sport = :8080'", None),
    ("Go to the current directory.", "cd .", None),
]  # fmt: skip

EXPECTED = [leak for _, _, leak in HELDOUT if leak]


def pairs(rows: list[tuple[str, str]]) -> list[Example]:
    return [one_turn(instruction, command) for instruction, command in rows]


def test_planted_leaks_in_raw_and_aligned_files(tmp_path: Path) -> None:
    raw = "\n".join(f"Instruction\n\n{i}\n\nCommand\n\n{c}\n\n" for i, c in TRAIN)
    (tmp_path / "train.txt").write_text(raw, encoding="utf-8")
    asked = "\n".join(f"Instruction: {i}" for i, _, _ in HELDOUT)
    (tmp_path / "instructions.txt").write_text(asked, encoding="utf-8")
    (tmp_path / "commands.txt").write_text("\n".join(c for _, c, _ in HELDOUT), encoding="utf-8")
    train = list(read_examples(tmp_path / "train.txt"))
    heldout = list(read_examples(f"{tmp_path}/instructions.txt,{tmp_path}/commands.txt"))
    assert (len(train), len(heldout)) == (len(TRAIN), len(HELDOUT))
    assert find_leaks(train, heldout) == EXPECTED


def test_each_set_against_nothing_and_itself() -> None:
    train = pairs(TRAIN)
    assert find_leaks([], train) == find_leaks(train, []) == []
    assert find_leaks(train, train) == [Leak("verbatim", n, n) for n in range(len(train))]


def test_the_gravest_and_among_equals_the_same_answer_is_named() -> None:
    train = pairs([("list FILES", "ls"), ("list files", "dir"), ("list files", "ls"), ("list all the files", "ls")])
    assert find_leaks(train, pairs([("list files", "ls")])) == [Leak("verbatim", 0, 2)]
    assert find_leaks(train, pairs([("List files!", "ls")])) == [Leak("normalised", 0, 0)]
    assert find_leaks(train[3:], pairs([("files to list", "ls")])) == [Leak("near-duplicate", 0, 0)]


def test_near_duplicates_agree_with_the_definition() -> None:
    """Against every pair by the plain definition, over random instructions of a small vocabulary."""
    random_ = random.Random(1)
    words = [f"w{n}" for n in range(14)]

    def some(count: int) -> list[tuple[str, str]]:
        return [(" ".join(random_.sample(words, random_.randint(3, 11))), f"ls {random_.randint(0, 2)}")
                for _ in range(count)]  # fmt: skip

    train, heldout = some(400), some(200)
    found = {leak.heldout for leak in find_leaks(pairs(train), pairs(heldout))}
    expected = set()
    for number, (instruction, command) in enumerate(heldout):
        ours = set(instruction.split())
        for other, answer in train:
            theirs = set(other.split())
            if instruction == other or (command == answer and 5 * len(ours & theirs) >= 4 * len(ours | theirs)):
                expected.add(number)
    assert found == expected
    assert 10 < len(expected) < 190


PASSAGE = (
    "The lighthouse of Alexandria stood on the island of Pharos. Its fire was seen fifty kilometres out at sea, and "
    "three earthquakes between 956 and 1323 brought it down; divers found its blocks in 1994."
)
STORY = (
    "Alexandria's lighthouse rose over a hundred metres above the island of Pharos, burned oil and wood every night, "
    "guided grain ships from Sicily and Rhodes into harbour, and fell at last after several medieval earthquakes."
)


@pytest.mark.parametrize(
    ("asked", "answered", "kind"),
    [
        # The same question and prose that was hardly touched: a leak, though no text of the two is the same.
        (
            "Please tell me what became of the lighthouse of Alexandria",
            STORY.replace("rose", "stood"),
            "near-duplicate",
        ),
        # The same question and an answer of one's own words.
        ("Please tell me what became of the lighthouse of Alexandria", PASSAGE, None),
        # Other questions about the same long passage, which have other answers, short or long.
        (f"When were its blocks found?\n\n{PASSAGE}", "1994", None),
        (f"What became of the lighthouse?\n\n{PASSAGE}", STORY, None),
    ],
)
def test_prose_may_be_near_without_being_the_same(asked: str, answered: str, kind: str | None) -> None:
    train = pairs(
        [
            ("Tell me what became of the lighthouse of Alexandria.", STORY),
            (f"How far was the fire seen?\n\n{PASSAGE}", "Fifty kilometres"),
            (f"How far was it seen?\n\n{PASSAGE}", " ".join(f"number {n}" for n in range(40))),
        ]
    )
    expected = [] if kind is None else [Leak("near-duplicate", 0, 0)]
    assert find_leaks(train, pairs([(asked, answered)])) == expected


def test_what_leaks_is_the_same_from_either_side() -> None:
    """So that nothing leaks any more where what is found from the one side is taken away."""
    train, heldout = pairs(TRAIN), pairs([(i, c) for i, c, _ in HELDOUT])
    gone = leaking(train, heldout)
    assert gone == {0: "near-duplicate", 1: "verbatim", 2: "normalised", 4: "normalised"}
    assert find_leaks([example for number, example in enumerate(train) if number not in gone], heldout) == []


def test_dialogues_are_compared_by_all_that_was_said_before_the_answer() -> None:
    def dialogue(first: str) -> Example:
        turns = ("user", first), ("assistant", "Which one?"), ("user", "The second."), ("assistant", "Done.")
        return Example(tuple(Message(*turn) for turn in turns))

    train = [dialogue("Delete a branch.")]
    assert find_leaks(train, [dialogue("Start the server.")]) == []
    system = Example((Message("system", "Be brief."), *dialogue("Delete a branch.").messages))
    assert find_leaks(train, [system]) == [Leak("verbatim", 0, 0)]


def test_normalise_and_content_words() -> None:
    assert normalise(" “ﬁnd”\tALL\n files?! ") == normalise("“find” all files")
    assert normalise("'list files.'") == "list files"
    assert normalise("cd ..") == "cd .."
    assert normalise("echo 'a' 'b'") == "echo 'a' 'b'"
    assert content_words("Please show me the files in ./src, of user 'bob' (v1.2).") == {
        "show", "files", "./src", "user", "bob", "v1.2"
    }  # fmt: skip


def test_pairs_that_stand_in_a_document() -> None:
    heldout = pairs([*TRAIN, ("7 + 5 =", "12")])
    documents = [
        Document("Nothing here, and 17 + 5 = 22, and 7 + 5 = 120.", "a"),
        Document("To count the lines in\nREPORT.txt, run `wc -l report.txt`; 7 + 5 = 12.", "b"),
        Document("Count the lines in report.txt. Answer: wc -l report.txt", "c"),
        Document("Show which process listens on port 8080. That is hard.", "d"),
    ]
    expected = [Leak("verbatim", 1, 2), Leak("verbatim", 5, 1)]
    assert find_leaks_in_text(heldout, iter(documents)) == expected
    assert find_leaks_in_text(heldout, documents[:2]) == [Leak("normalised", 1, 1), Leak("verbatim", 5, 1)]


def test_the_report_counts_and_shows() -> None:
    train, heldout = pairs(TRAIN), pairs([(i, c) for i, c, _ in HELDOUT])
    text = report(EXPECTED, train, heldout, most=4)
    assert text.startswith(f"5 of {len(HELDOUT)} held-out examples leak into 5 of training")
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        ["verbatim", "2"], ["normalised", "2"], ["near-duplicate", "1"]
    ]  # fmt: skip
    assert "(1 with another answer)" in text
    assert "cat report.txt | wc -l" in text
    assert text.splitlines()[-1] == "... and 1 more"
    assert report([], train, heldout).startswith("0 of ")


def test_the_audit_of_sixty_thousand_pairs_is_quick() -> None:
    """The worst case: one answer for all, and instructions of which most words are common."""
    random_ = random.Random(2)

    def some(count: int) -> list[Example]:
        numbers = (tuple(random_.randrange(10_000) for _ in range(3)) for _ in range(count))
        return [one_turn("Is the sum of {} and {} in the list number {} odd?".format(*n), "yes") for n in numbers]

    train, heldout = some(60_000), some(3_000)
    start = time.process_time()
    leaks = find_leaks(train, [*heldout, train[-1]])
    assert time.process_time() - start < 10  # 2 s where it was written
    assert leaks[-1].kind == "verbatim"
    assert leaks[-1].heldout == 3_000


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_tinyllms_own_pairs_against_themselves() -> None:
    seed = list(read_examples(Path(os.environ["LEVERET_DATA"]) / "shell" / "tiny_llm_seed.jsonl"))
    leaks = find_leaks(seed, seed)
    assert len(leaks) == len(seed) == 2_049
    assert all(leak.kind == "verbatim" and leak.same_response for leak in leaks)
