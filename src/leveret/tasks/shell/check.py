"""Checks the grammar: ``python -m leveret.tasks.shell.check [--show INTENT]``."""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

from leveret.tasks.shell.grammar import (
    REFERENCE,
    Intent,
    load_grammar,
    mask_command,
    mask_doubled,
)
from leveret.tasks.shell.pairs import HELD_OUT, ShellOptions, pairs


def problems_of(intent: Intent) -> Iterator[str]:
    """What is wrong with one intent's text, found without drawing."""
    known = load_grammar().slots.types
    wanted = set(REFERENCE.findall(mask_command(intent.command))) - {"options"}
    if len(intent.wordings) < 8:
        yield f"only {len(intent.wordings)} wordings"
    if intent.options and "{options}" not in intent.command:
        yield "options, but no {options} in the command"
    texts = [(intent.command, wanted)] + [(w, wanted) for w in intent.wordings]
    for option in intent.options:
        flag = set(REFERENCE.findall(mask_command(option.flag)))
        if not option.flag.startswith(" "):
            yield f"the flag of {option.name} does not begin with a space"
        texts += [(say, flag) for say in option.say]
    for text, slots in texts:
        found = set(REFERENCE.findall(mask_doubled(text))) - {"options"}
        if text != intent.command and found != slots:
            yield f"slots {sorted(found ^ slots)} differ from the command's in: {text}"
        for kind in (ref.partition("#")[0] for ref in found):
            if kind not in known and not re.match(r"\d+-\d+$", kind):
                yield f"unknown slot type {kind} in: {text}"


def unparsable(commands: list[str]) -> list[str]:
    """The bash commands that ``bash -n`` refuses."""

    def parses(batch: list[str]) -> bool:
        text = "\n".join(batch) + "\n"
        return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0

    if parses(commands):
        return []
    if len(commands) == 1:
        return commands
    middle = len(commands) // 2
    return unparsable(commands[:middle]) + unparsable(commands[middle:])


def ambiguous(per_intent: int = 100) -> list[str]:
    """Instructions that two drawings answer with different commands."""
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    grammar = load_grammar()
    rng = random.Random(0)
    for intent in grammar.intents:
        for _ in range(per_intent):
            drawn = grammar.draw(intent, rng.choice(intent.wordings), (), rng)
            answers[drawn.instruction.casefold().rstrip(".?")][drawn.command] = intent.name
    return [f"{text!r}: {commands}" for text, commands in answers.items() if len(commands) > 1]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", help="print samples of the intents whose name contains this")
    show = parser.parse_args().show
    grammar = load_grammar()
    bad = [f"{i.name}: {p}" for i in grammar.intents for p in problems_of(i)]
    bad += [f"{n} stands {c} times" for n, c in Counter(i.name for i in grammar.intents).items() if c > 1]
    if not bad:
        train = list(pairs(ShellOptions(per_intent=300)))
        bad += [f"does not parse: {c}" for c in unparsable([p.command for p in train if p.shell == "bash"])]
        bad += [f"ambiguous: {line}" for line in ambiguous()]
        held_out = {s: sum(1 for _ in pairs(ShellOptions(split=s, per_intent=5))) for s in HELD_OUT}
        if show:
            for pair in (p for p in train if show in p.intent):
                print(f"  {pair.instruction}\n      {pair.command}")
        print(
            f"{len(grammar.intents)} intents, {sum(i.shell == 'powershell' for i in grammar.intents)} of "
            f"PowerShell, {len({p.command.split()[0] for p in train})} first words of commands, "
            f"{len(train)} training pairs, held out (5 an intent): {held_out}"
        )
    print("\n".join(bad) if bad else "no problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
