"""Every command block of README, the first page and the tutorial is done, in the order in which a reader would.

Each line runs as it stands, in a folder where the reader's files are; what would take minutes is made smaller by what
`SMALLER` appends to it, and by nothing else. Of `make`, what it would run is looked up and done likewise: it would
install, and `make test` is what is running here.
"""

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readme import ROOT, blocks, typed, words

STEPS = ["batch_size=4", "compile=false", "eval_every=2", "eval_batches=1"]
SMALLER = {
    ("run", "quickstart"): ["--smoke"],
    ("run", "leveret-15m"): [
        "tokenizer.vocab_size=320", "model.depth=1", "model.max_position_embeddings=64", "data.validation_fraction=0.1",
        "pretrain.tokens=1024", *(f"pretrain.{each}" for each in STEPS),
    ],
    ("finetune", "--from"): ["finetune.epochs=null", "finetune.steps=4", *(f"finetune.{each}" for each in STEPS)],
}  # fmt: skip
"""What a command that begins so has appended: a shorter training of a smaller model, over the same ways."""

STORIES = {"README": ["README.md", "docs/index.md"], "tutorial": ["docs/tutorial.md"]}
"""Pages whose commands build on each other."""

ONE_PROCESS = """
import json, sys
from leveret.cli import main

for words in json.loads(sys.argv[1]):
    print("$ leveret", *words, flush=True)
    sys.argv = ["leveret", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""Does one command line after the other, so that torch is loaded once."""


def lines(page: str) -> list[str]:
    """What a page has the reader type; of make, the lines that it would run."""
    found = []
    for line in (line for block in blocks(page) for line in typed(block)):
        if line.startswith("make "):
            target = shlex.split(line, comments=True)[1]
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
            ours = [each for each in done.stdout.splitlines() if each.startswith(".venv/bin/leveret ")]
            assert bool(ours) == (target == "quickstart")
            found += [each.removeprefix(".venv/bin/") for each in ours]
        else:
            found.append(line)
    return found


def readers_files(folder: Path) -> None:
    """What the pages take for granted that the reader has: texts, and questions with answers."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["light", "water", "leaves", "sugar", "air", "make"], k=60)) for _ in range(60)]
    (folder / "my-texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "my-texts" / f"{number}.txt").write_text(text)
    pq.write_table(pa.table({"text": texts}), folder / "openstax.parquet")
    pairs = [{"instruction": f"What makes {text[:20]}?", "output": text[20:40]} for text in texts]
    (folder / "pairs.json").write_text(json.dumps(pairs))


@pytest.mark.parametrize("story", [pytest.param("README", marks=pytest.mark.long), "tutorial"])
def test_the_blocks_of_a_page_do_what_they_say(story: str, environment: Mapping[str, str], tmp_path: Path) -> None:
    readers_files(tmp_path)
    shown = list(dict.fromkeys(line for page in STORIES[story] for line in lines(page)))
    assert [line for line in shown if not line.startswith("leveret ")] == []
    todo = [words(line) for line in shown]
    todo = [[*each, *SMALLER.get(tuple(each[:2]), [])] for each in todo]
    assert len(todo) > 2
    command = [sys.executable, "-c", ONE_PROCESS, json.dumps(todo)]
    place = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=tmp_path, input="show the date\n", capture_output=True, text=True, env={**environment, **place},
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("$ leveret") == len(todo)
