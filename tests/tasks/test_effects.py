"""Rewards by effect: another command that does the same is as good, one that does something else is not."""

import pytest

from leveret.tasks.shell import effects
from leveret.tasks.shell.effects import Effects, parses

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.mark.parametrize(
    ("reference", "same", "other"),
    [
        ("cat notes.txt", "cat < notes.txt", "head notes.txt"),
        ("touch made.txt", ": ; touch ./made.txt", "mkdir made.txt"),
        ("mkdir -p /srv/music/new", "cd /srv; mkdir -p music/new", "mkdir -p /srv/music/old"),
        ("grep -n 'timeout' app.log", "awk '/timeout/ {print NR \":\" $0}' app.log", "grep 'timeout' app.log"),
        ("find /var/log -type f -name '*.gz'", "find /var/log -name '*.gz'", "find /var/log -type f"),
        ("sort data.csv | uniq -c", "cat data.csv | sort | uniq -c", "sort -u data.csv"),
        ("chmod 644 a.conf", "chmod u=rw,go=r a.conf", "chmod 600 a.conf"),
        ("cp -p a.txt /home/ann/docs", "cp -p ./a.txt /home/ann/docs/", "cp -p a.txt /home/ann"),
    ],
)  # fmt: skip
def test_the_effect_counts_and_not_the_words(reference: str, same: str, other: str) -> None:
    judged = Effects().same([(reference, reference), (reference, same), (reference, other), (reference, "true")])
    assert judged == [True, True, False, False]


@pytest.mark.parametrize(
    "reference",
    ["rm -r old", "df -h", "journalctl -u cron", "date", "no-such-tool a.txt", "cat 'a", "echo $RANDOM", "true"],
)
def test_nothing_is_said_of_what_cannot_be_judged(reference: str) -> None:
    """Destructive, or about the machine, or another thing every time, or without any effect here."""
    assert Effects().same([(reference, reference)]) == [None]


def test_a_destructive_answer_is_not_run() -> None:
    assert Effects().same([("cat notes.txt", "rm -f x; cat notes.txt"), ("cat notes.txt", "cat \0notes.txt")]) == [
        False,
        False,
    ]


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "lack", lambda: "no")
    assert Effects().same([("cat notes.txt", "cat notes.txt")]) == [None]


def test_what_bash_can_read_parses() -> None:
    good, bad = ["ls -l", "for f in *; do echo $f; done"], ["", " \n", "echo 'a", "for f in", "a\0b", "(ls"]
    assert [command for command in [*good, *bad] if parses(command)] == good
