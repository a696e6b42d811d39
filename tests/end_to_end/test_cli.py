"""The verbs that need no model, and what a user who made a mistake is told."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_project import Command, write_project

from leveret.recipe import shipped_recipes

PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "l20-edu-135m": 134_515_008,
    "parchment-166m": 161_966_592,
    "smallm-20m": 20_535_808,
    "tinyllm-cli-67m": 66_728_448,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with tiny.yaml and its files."""
    write_project(tmp_path)
    return tmp_path


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what the user did wrong: the last on stderr, progress may stand before it."""
    lines = done.stderr.splitlines()
    assert [line.startswith("leveret: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


# --- looking around ------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_names_every_verb(leveret: Command, tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = leveret("--help", cwd=tmp_path)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1.0  # 0.4 s on a machine that does nothing else
    verbs = "run recipes describe tokenizer prepare pretrain finetune evaluate generate chat shell bench audit data"
    for verb in (*verbs.split(), "doctor"):
        assert f"\n  {verb} " in done.stdout, verb


def test_recipes_are_listed_with_what_they_are(leveret: Command, tmp_path: Path) -> None:
    lines = leveret("recipes", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", PARAMETERS)
def test_describe_counts_the_reference_models_exactly(name: str, leveret: Command, tmp_path: Path) -> None:
    facts = json.loads(leveret("describe", name, "--json", cwd=tmp_path).stdout)
    assert {"parameters", "flops_per_token", "tokens_per_step", "memory_bytes", "recipe"} <= facts.keys()
    parameters = facts["parameters"]
    assert parameters["total"] == PARAMETERS[name]
    assert parameters["embedding"] + parameters["non_embedding"] == parameters["total"]
    assert facts["flops_per_token"] > 6 * parameters["non_embedding"]
    batch = facts["recipe"]["pretrain"]["batch_size"]
    assert facts["tokens_per_step"] == batch * facts["recipe"]["model"]["max_position_embeddings"]
    for kind in ("training", "inference"):
        *parts, total = facts["memory_bytes"][kind].values()
        assert sum(parts) == total
    assert facts["memory_bytes"]["training"]["total"] > 16 * PARAMETERS[name]


def test_overrides_reach_any_place_of_a_recipe_as_what_it_holds(leveret: Command, project: Path) -> None:
    overrides = {
        "pretrain.optimizer.lr": "1e-3",  # which YAML takes for text
        "pretrain.optimizer.betas": "[0.9, 0.99]",
        "data.sources.0.paths.1": "texts/other.txt",
        "pretrain.steps": "null",
        "pretrain.tokens": "2_000",
        "model.num_key_value_heads": "1",
        "sample_prompts": "[a, 'b: c']",
        "name": "renamed",
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    recipe: Any = json.loads(leveret("describe", "tiny.yaml", *arguments, "--json", cwd=project).stdout)["recipe"]
    assert recipe["pretrain"]["optimizer"]["lr"] == 0.001
    assert recipe["pretrain"]["optimizer"]["betas"] == [0.9, 0.99]
    assert recipe["data"]["sources"][0]["paths"] == ["texts/corpus.jsonl", "texts/other.txt"]
    assert (recipe["pretrain"]["steps"], recipe["pretrain"]["tokens"]) == (None, 2000)
    assert recipe["model"]["num_key_value_heads"] == 1
    assert recipe["sample_prompts"] == ["a", "b: c"]
    assert recipe["name"] == "renamed"


def test_describe_tells_a_person_too(leveret: Command, project: Path) -> None:
    lines = leveret("describe", "tiny.yaml", cwd=project).stdout.splitlines()
    assert [line[:18].rstrip() for line in lines] == [
        "recipe", "parameters", "FLOPs a token", "tokens a step", "pretrain", "training memory", "inference memory"
    ]  # fmt: skip
    assert "20 steps, 5,120 tokens" in lines[4]


def test_doctor_looks_the_machine_over(leveret: Command, tmp_path: Path) -> None:
    found = dict(line.split(maxsplit=1) for line in leveret("doctor", cwd=tmp_path).stdout.splitlines())
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "computes", "shards", "runs", "extras"} <= found.keys()


def test_a_pipe_that_closes_early_is_no_bug(environment: Mapping[str, str], tmp_path: Path) -> None:
    command = ["bash", "-c", f"{sys.executable} -m leveret tokenizer --help | true"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


# --- mistakes ------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown key": ("model.hiden_size=64", "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
    "unknown key in a list": (
        "data.sources.0.pathes=[x]",
        "unknown key 'data.sources.0.pathes'; did you mean 'paths'?",
    ),
    "unknown key in a set": ("evaluate.sets.held.licens=MIT", "'evaluate.sets.held.licens'; did you mean 'licence'?"),
    "unknown key, none near": ("xyzzy=1", "unknown key 'xyzzy'; known here are name, description, tokenizer"),
    "wrong type": ("pretrain.steps=many", "pretrain.steps: Input should be a valid integer"),
    "wrong choice": ("model.norm=batch", "model.norm: Input should be 'rms' or 'layer', not 'batch'"),
    "impossible number": ("pretrain.batch_size=0", "pretrain.batch_size: Input should be greater than 0, not 0"),
    "width and heads": (
        "model.hidden_size=33",
        "model: hidden_size 33 does not divide into num_attention_heads 2; change one, or give head_dim",
    ),
    "key-value heads": ("model.num_key_value_heads=3", "num_key_value_heads 3 does not divide num_attention_heads 2"),
    "odd heads": ("model.hidden_size=34", "rope needs an even head width, and head_dim is 17"),
    "too long": ("data.sequence_length=65", "data.sequence_length 65 is longer than model.max_position_embeddings 64"),
    "two lengths": ("pretrain.epochs=1", "pretrain: give exactly one of steps, tokens and epochs"),
    "no value": ("pretrain.steps", "'pretrain.steps' is not an override; write key.key=value"),
    "no such item": ("data.sources.7.paths=[x]", "'data.sources.7.paths=[x]' does not name a place in the recipe"),
    "missing file": ("data.sources.0.paths=[nowhere.txt]", "nowhere.txt: no such file or folder"),
    "missing examples": ("finetune.examples.0.paths.0=nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
    "small vocabulary": ("model.vocab_size=300", "model.vocab_size 300 is smaller than tokenizer.vocab_size 320"),
    "no generator": (
        "data.sources=[{kind: generated, generator: magic}]",
        "no generator 'magic'; there are: arithmetic, shell-drills, shell-lessons",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_recipe_is_told_in_one_line(name: str, leveret: Command, project: Path) -> None:
    override, expected = MISTAKES[name]
    assert expected in told(leveret("run", "tiny.yaml", override, "--run-dir", "here", cwd=project, exit_code=2))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_corpus_is_told(content: str, leveret: Command, project: Path) -> None:
    (project / "empty.txt").write_text(content)
    said = told(leveret("run", "tiny.yaml", "data.sources.0.paths=[empty.txt]", cwd=project, exit_code=2))
    assert said == "leveret: no documents in empty.txt"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: [unclosed", "is not readable YAML: while parsing a flow sequence"),
        (b"- a\n- list\n", "is not a recipe: it must be a mapping"),
        (b"\xff\xfe\x00", "is not readable YAML"),
        (b"name: x\n", "tokenizer: Field required"),
    ],
)
def test_a_file_that_is_no_recipe_is_told(content: bytes, expected: str, leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    said = told(leveret("run", "own.yaml", cwd=tmp_path, exit_code=2))
    assert said.startswith("leveret: own.yaml")
    assert expected in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "quikstart"], "there is no recipe or file 'quikstart'; did you mean 'quickstart'?"),
        (["run", "zzz"], "there is no recipe or file 'zzz'; shipped are gpt2-124m, "),
        (["generate", "nowhere", "x"], "there is no run 'nowhere' here or under runs/; `leveret run RECIPE` makes one"),
        (["tokenizer", "show", "a@b"], "'a@b': the step after @ must be a number"),
        (["finetune"], "say which recipe to finetune, or which run with --from"),
        (["data", "verify", "."], "holds no token shards: it has no manifest.json"),
        (["data", "convert", "nowhere.txt", "out.jsonl"], "nowhere.txt: no such file or folder"),
        (["audit", "leaks", "--train", "nowhere.txt", "--heldout", "x"], "nowhere.txt: no such file or folder"),
        (["tokenizer", "show", "nowhere"], "there is no run 'nowhere'"),
    ],
)
def test_what_is_not_there_is_told(arguments: list[str], expected: str, leveret: Command, tmp_path: Path) -> None:
    assert expected in told(leveret(*arguments, cwd=tmp_path, exit_code=2))


def test_a_run_with_a_tokenizer_only_says_that_it_has_no_model(leveret: Command, project: Path) -> None:
    done = leveret("tokenizer", "train", "tiny.yaml", "tokenizer.vocab_size=300", "--run-dir", "half", cwd=project)
    assert done.stdout == "300 entries in half/tokenizer\n"
    assert [path.name for path in (project / "half").iterdir() if path.is_dir()] == ["tokenizer"]
    said = told(leveret("generate", "half", "x", cwd=project, exit_code=2))
    assert said == "leveret: half has no finished stage with a model yet; run `leveret run` on its recipe"


def test_debug_shows_where_a_mistake_was_noticed(leveret: Command, tmp_path: Path) -> None:
    done = leveret("run", "zzz", "--debug", cwd=tmp_path, exit_code=1)
    assert "Traceback" in done.stderr
    assert "UserError: there is no recipe or file 'zzz'" in done.stderr


# --- data verbs ----------------------------------------------------------------------------------------------

RAW = """Instruction

List all files, even hidden ones

Command
ls -a


INSTRUCTION:
Search for the word error in app.log
COMMAND:
grep error app.log

instruction
Unpack backup.tar.gz into the folder /srv/backup
command
mkdir -p /srv/backup \\
  && tar -xzf backup.tar.gz -C /srv/backup

Instruction
Show the disk usage of /var/log
Command
du -sh /var/log
"""


def test_audit_finds_each_kind_of_leak_in_files_of_tinyllms_kind(leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(RAW)
    held_out = {
        "List all files, even hidden ones": "ls -a",  # word for word
        "search for the  word error in APP.log.": "grep error app.log",  # but for case and space
        "Please show me the disk usage of /var/log now": "du -sh /var/log",  # nearly
        "Show the disk usage of /var/lib": "du -sh /var/lib",  # another slot: no leak
        "Count the lines of app.log": "wc -l app.log",  # another question
    }
    (tmp_path / "asked.txt").write_text("".join(f"Instruction: {text}\n" for text in held_out))
    (tmp_path / "gold.txt").write_text("".join(f"{command}\n" for command in held_out.values()))
    arguments = ["audit", "leaks", "--train", "train.txt", "--heldout", "asked.txt,gold.txt"]
    lines = leveret(*arguments, cwd=tmp_path, exit_code=1).stdout.splitlines()
    assert lines[0] == "3 of 5 held-out examples leak into 4 of training"
    assert [line.split() for line in lines[1:4]] == [["verbatim", "1"], ["normalised", "1"], ["near-duplicate", "1"]]
    found = [line for line in lines if ": held-out" in line]
    assert found == [
        "verbatim: held-out 1, training 1",
        "normalised: held-out 2, training 2",
        "near-duplicate: held-out 3, training 4",
    ]


def test_audit_of_clean_files_ends_well(leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(RAW)
    (tmp_path / "clean.jsonl").write_text(json.dumps({"instruction": "Say the date", "command": "date"}) + "\n")
    done = leveret("audit", "leaks", "--train", "train.txt", "--heldout", "clean.jsonl", cwd=tmp_path)
    assert done.stdout.startswith("0 of 1 held-out examples leak into 4 of training\n")


def test_convert_turns_raw_text_and_aligned_files_into_json_lines(leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(RAW)
    done = leveret("data", "convert", "train.txt", "pairs.jsonl", cwd=tmp_path)
    assert done.stdout == "4 examples in pairs.jsonl\n"
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows[0] == {"instruction": "List all files, even hidden ones", "command": "ls -a"}
    assert rows[2]["command"] == "mkdir -p /srv/backup \\\n  && tar -xzf backup.tar.gz -C /srv/backup"

    (tmp_path / "asked.txt").write_text("Instruction: say the date\n")
    (tmp_path / "gold.txt").write_text("date\n")
    leveret("data", "convert", "asked.txt,gold.txt", "held.jsonl", cwd=tmp_path)
    assert json.loads((tmp_path / "held.jsonl").read_text()) == {"instruction": "say the date", "command": "date"}


def test_corpus_writes_as_many_documents_as_asked(leveret: Command, project: Path) -> None:
    done = leveret("tokenizer", "corpus", "tiny.yaml", "corpus.txt", "--articles", "3", cwd=project)
    assert done.stdout == "3 documents in corpus.txt\n"
    texts = (project / "corpus.txt").read_text().strip().split("\n\n")
    assert texts == [
        f"To show alpha type cat alpha.txt; to make alpha type touch alpha.txt, {n} times." for n in range(3)
    ]
