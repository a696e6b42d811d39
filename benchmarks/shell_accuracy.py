"""English to shell commands: TinyLLM's recipe, leveret-shell and the nearest neighbour, on the same pairs.

    pairs of $LEVERET_DATA/shell --held out by instruction, by command template--> training pairs, two held-out sets
      --> each contestant trained on them for the same minutes --> exact match, command name

By pair: no instruction of the set, letters and blanks aside, is asked in training; its command may be answered there.
By template: no command of training has the template of one in the set. A template is the command with every value
(what is quoted, paths, numbers, names) as one place-holder; command names, flags and operators stay. Both sets are
drawn from nl2bash and tldr alone, as they are mixed; training has all other sources too. Both contestants start from
nothing and read packed rows; TinyLLM's own tokenizer is trained on Wikipedia, as published.
Run: LEVERET_DATA=... python benchmarks/shell_accuracy.py [--minutes 15] [--work DIR] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from leveret.data.leaks import normalise
from leveret.evaluation.exact_match import normalise_space, wilson_interval
from leveret.hardware.device import environment, pick_device

HELD_OUT = 500
"""Examples of each held-out set."""
GOALS = {"pair": {"exact_match": 0.12, "command_match": 0.82}, "template": {"exact_match": 0.05, "command_match": 0.60}}
CONTESTANTS = {"tinyllm": "tinyllm-cli-67m", "leveret-shell": "leveret-shell"}
PROBE_STEPS = 12
OPERATOR = re.compile(r"[|&;<>()]+|\d?>&?\d?")
ASSIGNMENT = re.compile(r"\w+=")
PREFIXES = {"sudo", "time", "nohup", "env", "exec", "command"}


@dataclass(frozen=True)
class Pair:
    instruction: str
    command: str
    source: str


# --- commands ------------------------------------------------------------------------------------------------


def words_of(command: str) -> list[str]:
    """The command's words and operators, quotes kept; where its quoting is broken, what blanks divide."""
    lexer = shlex.shlex(command, posix=False, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return command.split()


def command_name(command: str) -> str:
    """The first word that is neither a prefix such as sudo nor an assignment."""
    words = [word for word in words_of(command) if word not in PREFIXES and not ASSIGNMENT.match(word)]
    return words[0] if words else ""


def template_of(command: str) -> str:
    """The command with every value as one place-holder."""
    out, at_start = [], True
    for word in words_of(command):
        if OPERATOR.fullmatch(word):
            out.append(word)
            at_start = word[0] in "|&;("
        elif at_start and (assigned := ASSIGNMENT.match(word)):
            out.append(f"{assigned[0]}_")
        elif at_start:
            out.append(word)
            at_start = word in PREFIXES
        elif word.startswith("-"):
            flag, equals, _ = word.partition("=")
            out.append(flag + ("=_" if equals else ""))
        elif not out or out[-1] != "_":
            out.append("_")
    return " ".join(out)


# --- the sets ------------------------------------------------------------------------------------------------


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs, each instruction and command once."""
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    found = {(row["instruction"], row["command"]): row["source"] for row in rows if row["command"].strip()}
    return [Pair(instruction, command, source) for (instruction, command), source in found.items()]


def keyed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def divide(pairs: Sequence[Pair], most: int) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """The training pairs and the two held-out sets, one pair of each instruction and each template that is held out."""
    drawn_from = [pair for pair in pairs if pair.source == "nl2bash" or pair.source.startswith("tldr")]
    templates: dict[str, Pair] = {}
    for pair in sorted(drawn_from, key=lambda each: (keyed(f"template {each.instruction}"), each.command)):
        templates.setdefault(template_of(pair.command), pair)
    by_template = dict(list(templates.items())[:most])
    rest = [pair for pair in pairs if template_of(pair.command) not in by_template]
    questions: dict[str, Pair] = {}
    chosen = [pair for pair in drawn_from if template_of(pair.command) not in by_template]
    for pair in sorted(chosen, key=lambda each: (keyed(f"pair {each.instruction}"), each.command)):
        questions.setdefault(normalise(pair.instruction), pair)
    by_pair = dict(list(questions.items())[:most])
    asked = set(by_pair) | {normalise(pair.instruction) for pair in by_template.values()}
    train = [pair for pair in rest if normalise(pair.instruction) not in asked]
    return train, {"pair": list(by_pair.values()), "template": list(by_template.values())}


def write(path: Path, pairs: Sequence[Pair]) -> None:
    rows = ({"instruction": pair.instruction, "command": pair.command, "source": pair.source} for pair in pairs)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# --- the contestants -----------------------------------------------------------------------------------------


def nearest(train: Sequence[Pair], asked: Sequence[Pair]) -> list[str]:
    """For each question the command of the training pair whose words are most alike, by the cosine of TF-IDF."""
    bags = [Counter(re.findall(r"\w+", pair.instruction.lower())) for pair in train]
    documents = Counter(word for bag in bags for word in bag)
    weight = {word: math.log(len(bags) / count) + 1 for word, count in documents.items()}
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, bag in enumerate(bags):
        norm = math.sqrt(sum((count * weight[word]) ** 2 for word, count in bag.items())) or 1.0
        for word, count in bag.items():
            postings[word].append((number, count * weight[word] / norm))
    answers = []
    for pair in asked:
        alike: dict[int, float] = defaultdict(float)
        for word, count in Counter(re.findall(r"\w+", pair.instruction.lower())).items():
            for number, share in postings.get(word, ()):
                alike[number] += count * weight[word] * share
        answers.append(train[max(alike, key=lambda n: (alike[n], -n))].command if alike else "")
    return answers


def leveret(*arguments: str | Path, cwd: Path) -> str:
    command = [sys.executable, "-m", "leveret", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def tokens_per_second(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "finetune" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_second"] for row in rows[1:] if "tokens_per_second" in row)


def trained(name: str, work: Path, minutes: float, device: str, quick: bool) -> dict[str, Any]:
    """Trains a contestant for so many minutes of steps, as a short trial says how long they are. Its summary."""
    folder = work / name
    text = Path(os.environ["LEVERET_DATA"]) / "text" / "wikipedia_2015.parquet"
    corpus = [{"paths": [str(text)], "max_documents": 2000}] if name == "tinyllm" else [{"paths": ["train.jsonl"]}]
    if name != "tinyllm":
        corpus[0]["column"] = "instruction"
        corpus.append({"paths": ["train.jsonl"], "column": "command"})
    settings = [
        f"data.sources={json.dumps(corpus)}", "pretrain=null", 'finetune.examples=[{"paths": ["train.jsonl"]}]',
        "evaluate.sets={}", "finetune.tokens=null", "finetune.epochs=null", *QUICK * quick,
    ]  # fmt: skip
    recipe = CONTESTANTS[name]
    if not (folder / "probe").exists():
        leveret("finetune", recipe, *settings, f"finetune.steps={PROBE_STEPS}", "finetune.log_every=3",
                "--run-dir", folder / "probe", "--device", device, cwd=work)  # fmt: skip
    described = json.loads(leveret("describe", recipe, *settings, "finetune.steps=1", "--json", cwd=work))
    steps = max(20, int(minutes * 60 * tokens_per_second(folder / "probe") / described["tokens_per_step"]))
    leveret("finetune", recipe, *settings, f"finetune.steps={steps}", "--run-dir", folder / "run",
            "--device", device, cwd=work)  # fmt: skip
    summary = json.loads((folder / "run" / "finetune" / "summary.json").read_text())
    return {"parameters": described["parameters"]["total"], "steps": steps, "epochs": round(summary["epochs"], 2),
            "minutes": round(summary["train_seconds"] / 60, 2)}  # fmt: skip


QUICK = [
    "tokenizer.vocab_size=600", "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=2",
    "model.intermediate_size=128", "finetune.compile=false",
]  # fmt: skip


def answers_of(name: str, work: Path, held: str, device: str) -> list[str]:
    """Greedy answers of a trained contestant to a held-out set, in its order."""
    out = work / name / f"{held}.jsonl"
    leveret(
        "evaluate", work / name / "run", "--examples", f"{held}.jsonl", "--output", out, "--device", device, cwd=work
    )
    return [json.loads(line)["answer"] for line in out.read_text().splitlines()]


def scored(pairs: Sequence[Pair], answers: Sequence[str]) -> dict[str, Any]:
    exact = [normalise_space(a) == normalise_space(pair.command) for pair, a in zip(pairs, answers, strict=True)]
    named = [command_name(a) == command_name(pair.command) for pair, a in zip(pairs, answers, strict=True)]
    of_nl2bash = [hit for pair, hit in zip(pairs, exact, strict=True) if pair.source == "nl2bash"]
    names_of_nl2bash = [hit for pair, hit in zip(pairs, named, strict=True) if pair.source == "nl2bash"]
    return {
        "exact_match": round(sum(exact) / len(exact), 4),
        "interval_95": [round(bound, 4) for bound in wilson_interval(sum(exact), len(exact))],
        "command_match": round(sum(named) / len(named), 4),
        "nl2bash": {
            "examples": len(of_nl2bash),
            "exact_match": round(statistics.mean(of_nl2bash), 4),
            "command_match": round(statistics.mean(names_of_nl2bash), 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=15.0, help="of training steps, each contestant")
    parser.add_argument("--work", type=Path, help="a folder that keeps the runs; a stopped benchmark goes on there")
    parser.add_argument("--only", choices=CONTESTANTS, help="one contestant alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny models for seconds; their figures mean nothing")
    arguments = parser.parse_args()
    if "LEVERET_DATA" not in os.environ:
        sys.exit("set LEVERET_DATA to the folder that holds shell/ and text/")
    minutes, most = (0.05, 40) if arguments.quick else (arguments.minutes, HELD_OUT)
    pairs = read_pairs(Path(os.environ["LEVERET_DATA"]) / "shell")
    train, sets = divide(pairs[::8] if arguments.quick else pairs, most)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for name, some in ("train", train), *sets.items():
            write(work / f"{name}.jsonl", some)
        print(f"{len(train)} training pairs; held out: " + ", ".join(f"{len(some)} by {n}" for n, some in sets.items()))
        found = {held: {"nearest neighbour": nearest(train, some)} for held, some in sets.items()}
        facts: dict[str, dict[str, Any]] = {"nearest neighbour": {}}
        for name in [arguments.only] if arguments.only else CONTESTANTS:
            facts[name] = trained(name, work, minutes, arguments.device, arguments.quick)
            for held in sets:
                found[held][name] = answers_of(name, work, held, arguments.device)
    for held, answers in found.items():
        for name, given in answers.items():
            rows.append({"held_out_by": held, "contestant": name, **facts[name], **scored(sets[held], given)})
            told = rows[-1]
            print(f"by {held:<9}{name:<18} exact {told['exact_match']:6.1%}  command {told['command_match']:6.1%}  "
                  f"nl2bash {told['nl2bash']['exact_match']:.1%} {told['nl2bash']['command_match']:.1%}")  # fmt: skip
    ours = {row["held_out_by"]: row for row in rows if row["contestant"] == "leveret-shell"}
    goals = {
        key if held == "pair" else f"{key}_by_{held}": {"value": ours[held][key], "goal": goal}
        for held, wanted in GOALS.items() if ours
        for key, goal in wanted.items()
    }  # fmt: skip
    machine = environment(pick_device(arguments.device))
    print(json.dumps({"benchmark": "shell_accuracy", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
