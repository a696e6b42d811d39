"""The categories of commands, with examples on both sides of each border."""

import pytest

from leveret.evaluation.failures import CATEGORIES, categories

MEMBERS = {
    "special characters": [
        r"find . -name x -exec rm {} \;",
        "echo $HOME",
        "cd ~/src",
        "sleep 5 & wait",
        "tar cf x.tar a && ls",
        "echo `date`",
        "date +%F",
        "git reset HEAD^",
        "echo hi # note",
    ],
    "e-mail address": [
        "git config --global user.email ann.lee@example.org",
        "mail -s hello bob+news@mail.example.co.uk",
        "grep 'eve@example.com' list.txt",
    ],
    "redirection": [
        "ls > files.txt",
        "ls >> files.txt",
        "sort < in.txt",
        "make 2> err.log",
        "make 2>&1",
        "make &> all.log",
        "ls >files.txt",
        "awk '$1 > 5' a > b",
        'echo "it\'s" > note',
        "diff <(sort a) <(sort b)",
        "cat << EOF",
    ],
    "version specifier": [
        "pip install requests==2.31.0",
        "pip install 'requests>=2.31'",
        "pip install 'flask<3.0'",
        "pip install numpy~=1.26",
        "npm install react@18.2.0",
        "docker pull postgres:15.2",
        "conda create -n x python=3.11",
        "docker run app:v1.2",
    ],
    "pipe chain": ["ls | wc -l", "ls|wc -l", "cat a | sort | uniq", "grep 'a|b' x | wc -l"],
    "regular expression": [
        "grep '[0-9]' a",
        "grep -E '^a.*b$' a",
        "grep -E '(cat|dog)' a",
        r"grep -P '\d{4}' a",
        r"sed 's/\s$//' a",
        'grep "[^a]" b',
        "tr '[:upper:]' '[:lower:]'",
        r"grep '\.log$' a",
        r"""grep "say \"\w" a""",
    ],
}
STRANGERS = {
    "special characters": ["ls -l /tmp", "grep -r 'todo' src", "mkdir -p a/b"],
    "e-mail address": [
        "ssh root@10.0.0.1",
        "scp a.txt ann@box:/tmp",
        "npm install react@18.2.0",
        "dig @1.1.1.1 example.com",
    ],
    "redirection": [
        "awk '$3 > 100' a",
        "pip install 'flask<3.0'",
        "pip install 'requests>=2.31'",
        'git commit -m "a -> b"',
        "ls -l",
    ],
    "version specifier": [
        "ssh root@10.0.0.1",
        "dig @192.168.1.53 example.com",
        "ping 10.1.2.3",
        "nc -l 0.0.0.0:8080",
        "curl http://localhost:8080/x",
        "sleep 1.5",
        "python3.11 a.py",
        "curl --resolve=10.20.30.40",
    ],
    "pipe chain": ["grep -E 'a|b' x", "make || echo failed", "tr ',' '|'", 'awk -F"|" file'],
    "regular expression": [
        r"Copy-Item C:\docs\work D:\backup",
        r"Get-Content .\data.txt",
        "git stash drop stash@{9}",
        "ls -l",
        "find . -name '*.log'",
        "echo {1,2}",
    ],
}


@pytest.mark.parametrize(("name", "command"), [(n, c) for n, commands in MEMBERS.items() for c in commands])
def test_members(name: str, command: str) -> None:
    assert name in categories(command)


@pytest.mark.parametrize(("name", "command"), [(n, c) for n, commands in STRANGERS.items() for c in commands])
def test_strangers(name: str, command: str) -> None:
    assert name not in categories(command)


def test_every_category_has_its_examples() -> None:
    assert MEMBERS.keys() == STRANGERS.keys() == CATEGORIES.keys()


def test_several_and_none() -> None:
    assert categories("pip freeze | grep 'a.*' > req.txt") == ["redirection", "pipe chain", "regular expression"]
    assert categories("ls -l /tmp") == categories("") == ["plain"]
