"""The grammar of shell intents: its size, its commands, and that what is held out is held out."""

import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any, get_args

import pytest
import tree_sitter_bash
from tree_sitter import Language, Parser

from leveret.data.examples import Example
from leveret.data.leaks import content_words, find_leaks, find_leaks_in_text, normalise
from leveret.data.sources import Document
from leveret.tasks.generators import EXAMPLES
from leveret.tasks.shell import pairs as pairs_module
from leveret.tasks.shell.check import problems_of, unparsable
from leveret.tasks.shell.grammar import REFERENCE, Drawn, Grammar, Intent, Option, Value, is_new, load_grammar
from leveret.tasks.shell.lessons import LessonOptions, glossary, lessons
from leveret.tasks.shell.pairs import HELD_OUT, ShellOptions, ShellPair, Split, pairs

GRAMMAR = load_grammar()
BY_NAME = {intent.name: intent for intent in GRAMMAR.intents}
SIZES = {"train": 65, "values": 15, "wordings": 15, "combinations": 15}
"""Pairs of each intent in the whole grammar's sample; the core's is larger."""


def made(split: str, per_intent: int, **options: Any) -> list[Example]:
    return list(EXAMPLES["shell"](split=split, per_intent=per_intent, **options))


@pytest.fixture(scope="module")
def whole() -> dict[str, list[Example]]:
    return {split: made(split, size) for split, size in SIZES.items()}


@pytest.fixture(scope="module")
def core() -> dict[str, list[Example]]:
    return {split: made(split, 2 * size, core=True) for split, size in SIZES.items()}


@pytest.fixture(params=["core", "whole"])
def sample(request: pytest.FixtureRequest) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = request.getfixturevalue(request.param)
    return found


def programs(command: str) -> set[str]:
    """The programs that a command of the grammar begins with: its own, and that of each part of a pipe."""
    words = (part.split() for part in re.split(r"\s(?:\||&&)\s", command))
    first = (next((w for w in part if w not in ("sudo", "nohup") and not w.startswith("{")), "") for part in words)
    return {word for word in first if re.fullmatch(r"[\w.+-]+", word)}


# --- size ----------------------------------------------------------------------------------------------------


def test_size() -> None:
    of_shell = Counter(intent.shell for intent in GRAMMAR.intents)
    assert of_shell.keys() == {"bash", "powershell"}
    assert of_shell.total() >= 150
    assert of_shell["powershell"] >= 25
    assert len({p for i in GRAMMAR.intents if i.shell == "bash" for p in programs(i.command)}) >= 70
    assert len(BY_NAME) == len(GRAMMAR.intents)  # each name once
    assert len(GRAMMAR.core) >= 40
    assert all(len(set(intent.wordings)) == len(intent.wordings) >= 8 for intent in GRAMMAR.intents)


def test_the_commands_that_were_promised_are_there() -> None:
    found = {p for i in GRAMMAR.intents for p in programs(i.command)}
    wanted = "find grep sed awk tar rsync git docker kubectl systemctl ssh curl ffmpeg apt pip conda"
    assert set(wanted.split()) <= found


def test_training_pairs_are_many_and_unique(whole: dict[str, list[Example]]) -> None:
    texts = {(normalise(e.instruction), e.response) for e in whole["train"]}
    assert len(texts) == len(whole["train"]) >= 40_000


def test_commands_hold_what_small_models_fail_at(whole: dict[str, list[Example]]) -> None:
    from leveret.evaluation.failures import CATEGORIES, categories

    found = Counter(name for e in whole["train"] for name in categories(e.response))
    assert all(found[name] >= 300 for name in CATEGORIES), found
    assert sum("[:" in e.response for e in whole["train"]) >= 50  # character classes


# --- commands and instructions -------------------------------------------------------------------------------


def test_the_text_of_every_intent_is_sound() -> None:
    assert {intent.name: list(problems_of(intent)) for intent in GRAMMAR.intents if list(problems_of(intent))} == {}


def test_every_bash_command_parses(whole: dict[str, list[Example]]) -> None:
    """By bash itself, many at once, and by tree-sitter one by one: two open quotes could make one closed string."""
    commands = {e.response for examples in whole.values() for e in examples if e.meta["shell"] == "bash"}
    assert len(commands) > 30_000
    assert unparsable(sorted(commands)) == []
    parser = Parser(Language(tree_sitter_bash.language()))
    assert [command for command in commands if parser.parse(command.encode()).root_node.has_error] == []
    assert parser.parse(b"echo 'a").root_node.has_error


def test_unparsable_finds_the_bad_ones() -> None:
    good = [f"echo {n}" for n in range(9)]
    assert unparsable([*good[:4], "echo 'a", *good[4:], "if true"]) == ["echo 'a", "if true"]


def test_no_notation_is_left_in_a_pair(whole: dict[str, list[Example]]) -> None:
    types = set(GRAMMAR.slots.types) | {"options"}
    for examples in whole.values():
        for example in examples:
            for text in (example.instruction, example.response):
                assert not types & set(REFERENCE.findall(text)), text
                assert not re.search("[\ue000-\ue0ff]", text), text
                assert text == text.strip()
                assert "  " not in example.instruction
                assert text


def test_powershell_is_named_where_it_is_meant(whole: dict[str, list[Example]]) -> None:
    for examples in whole.values():
        for example in examples:
            assert ("powershell" in example.instruction.lower()) == (example.meta["shell"] == "powershell")


def test_an_instruction_never_has_two_commands(whole: dict[str, list[Example]], core: dict[str, list[Example]]) -> None:
    """In no split, nor across them, nor with another seed."""
    answers: dict[str, set[str]] = defaultdict(set)
    for examples in [*whole.values(), *core.values(), made("train", 30, seed=1), made("wordings", 10, seed=1)]:
        for example in examples:
            answers[normalise(example.instruction)].add(example.response)
    assert {text: commands for text, commands in answers.items() if len(commands) > 1} == {}


def test_no_drawing_answers_an_instruction_in_two_ways() -> None:
    """Also among the draws that a sample leaves out because their instruction stands there already."""
    answers: dict[str, str] = {}
    rng = random.Random(0)
    for intent in GRAMMAR.intents:
        companies: list[tuple[Option, ...]] = [(), *combinations(intent.options, 1), *combinations(intent.options, 2)]
        for _ in range(40):
            drawn = GRAMMAR.draw(intent, rng.choice(intent.wordings), rng.choice(companies), rng, rng.random() < 0.3)
            text = normalise(drawn.instruction)
            assert answers.setdefault(text, drawn.command) == drawn.command, text


# --- what is held out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", HELD_OUT)
def test_nothing_held_out_leaks_into_training(sample: dict[str, list[Example]], split: str) -> None:
    assert len(sample[split]) > 500
    assert find_leaks(sample["train"], sample[split]) == []


@pytest.mark.parametrize("split", HELD_OUT)
def test_another_seed_holds_out_the_same(sample: dict[str, list[Example]], split: str) -> None:
    """Which values, wordings and combinations are held out is no matter of the seed."""
    core_only = len(sample["train"]) < 40_000
    assert find_leaks(sample["train"], made(split, 5, seed=7, core=core_only)) == []


def test_the_core_does_not_leak_from_the_whole(core: dict[str, list[Example]], whole: dict[str, list[Example]]) -> None:
    """A model trained on all of it is measured on the core, and the other way round."""
    for split in HELD_OUT:
        assert find_leaks(whole["train"], core[split]) == []
        assert find_leaks(core["train"], whole[split]) == []


def test_held_out_sets_are_disjoint(sample: dict[str, list[Example]]) -> None:
    for first, second in combinations(HELD_OUT, 2):
        assert find_leaks(sample[first], sample[second]) == []


Draw = tuple[Intent, str, tuple[Option, ...], dict[str, Value]]


@pytest.fixture(scope="module")
def draws() -> dict[Split, list[Draw]]:
    """What went into each pair of each split: intent, wording, options, slot values."""
    noted: list[Draw] = []
    values: list[dict[str, Value]] = []
    draw, fill = Grammar.draw, Grammar._values

    def noting_values(self: Grammar, references: set[str], new: bool, rng: random.Random) -> dict[str, Value]:
        values.append(fill(self, references, new, rng))
        return values[-1]

    def noting(
        self: Grammar,
        intent: Intent,
        wording: str,
        options: tuple[Option, ...],
        rng: random.Random,
        *rest: Any,
        **more: Any,
    ) -> Drawn:
        drawn = draw(self, intent, wording, options, rng, *rest, **more)
        noted.append((intent, wording, options, values[-1]))
        return drawn

    found: dict[Split, list[Draw]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grammar, "draw", noting)
        patch.setattr(Grammar, "_values", noting_values)
        for split in get_args(Split):
            noted.clear()
            assert list(pairs(ShellOptions(split=split, per_intent=40 if split == "train" else 10)))
            found[split] = list(noted)
    return found


def open_values(draw: Draw) -> set[str]:
    return {v.typed for ref, v in draw[3].items() if GRAMMAR.slots.is_open(ref.partition("#")[0])}


def test_new_values_are_new(draws: dict[Split, list[Draw]]) -> None:
    """Every open slot of that set takes a value that no other set ever has there; wordings and company are old."""
    new = [open_values(draw) for draw in draws["values"]]
    assert all(new)
    old = {v for split in ("train", "wordings", "combinations") for draw in draws[split] for v in open_values(draw)}
    assert len(old) > 3000
    assert old.isdisjoint(set().union(*new))
    assert all(is_new(value) for values in new for value in values)
    for intent, wording, options, _ in draws["values"]:
        assert wording in intent.trained_wordings
        assert len(options) < 2 or options not in intent.new_pairs


def test_new_wordings_are_new(draws: dict[Split, list[Draw]]) -> None:
    for split, drawn in draws.items():
        for intent, wording, _, _ in drawn:
            assert (wording == intent.new_wording) == (split == "wordings"), (split, intent.name, wording)
    assert {intent.name for intent, *_ in draws["wordings"]} == set(BY_NAME)  # every intent has one


def words_of(wording: str) -> frozenset[str]:
    return content_words(re.sub(r"[\[\]|]", " ", wording))


def test_new_wordings_are_no_near_duplicates() -> None:
    """The most alike trained wording has not even 0.7 of their words in common (Jaccard), and mostly less than 0.5."""
    nearest = []
    for intent in GRAMMAR.intents:
        new, old = words_of(intent.new_wording), [words_of(wording) for wording in intent.trained_wordings]
        nearest.append(max(len(new & words) / len(new | words) for words in old))
        assert nearest[-1] < 0.7, intent.name
    assert sum(index < 0.5 for index in nearest) / len(nearest) > 0.75


def test_new_combinations_are_new(draws: dict[Split, list[Draw]]) -> None:
    together = {
        split: {
            (i.name, frozenset((a.name, b.name))) for i, _, options, _ in drawn for a, b in combinations(options, 2)
        }
        for split, drawn in draws.items()
    }
    assert all(len(options) == 2 for _, _, options, _ in draws["combinations"])
    for split in ("train", "values", "wordings"):
        assert together["combinations"].isdisjoint(together[split]), split
    alone = {(i.name, o.name) for i, _, options, _ in draws["train"] for o in options}
    for name, both in together["combinations"]:
        assert all((name, option) in alone for option in both), (
            name
        )  # each by itself, or otherwise accompanied, is known
    assert len({name for name, _ in together["combinations"]}) >= 50


def test_new_combinations_show_both_flags() -> None:
    """Seen from outside: the command holds the fixed words of both flags."""
    for pair in pairs(ShellOptions(split="combinations", per_intent=3)):
        intent = BY_NAME[pair.intent]
        fixed = {o.name: [w for w in o.flag.split() if "{" not in w and len(w) > 1] for o in intent.options}
        held = [names for names in intent.new_pairs if all(w in pair.command for o in names for w in fixed[o.name])]
        assert held, pair.command


def test_held_out_sets_need_options_that_may_not_meet() -> None:
    for intent in GRAMMAR.intents:
        held = {frozenset((a.name, b.name)) for a, b in intent.new_pairs}
        trained = {frozenset((a.name, b.name)) for a, b in intent.trained_pairs}
        assert held.isdisjoint(trained)
        assert len(held | trained) == len(intent.options) * (len(intent.options) - 1) // 2
        assert bool(held) == (len(intent.options) >= 4)
        if held:  # each option is trained beside at least two others
            company = Counter(name for names in trained for name in names)
            assert all(company[option.name] >= 2 for option in intent.options)


# --- determinism ---------------------------------------------------------------------------------------------

DIGEST = """
import hashlib
from leveret.tasks.shell.lessons import LessonOptions, lessons
from leveret.tasks.shell.pairs import ShellOptions, pairs
splits = ("train", "values", "wordings", "combinations")
lines = [str(p) for s in splits for p in pairs(ShellOptions(split=s, per_intent=4))]
lines += lessons(LessonOptions(per_intent=4, core=True))
print(len(lines), hashlib.sha256("\\n".join(lines).encode()).hexdigest())
"""


def test_the_same_everywhere() -> None:
    """Another process with other hashes of strings draws the same."""
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert int(found.pop().split()[0]) > 7000


def test_a_seed_draws_others_and_more_contains_fewer() -> None:
    def drawn(**options: Any) -> list[ShellPair]:
        return list(pairs(ShellOptions(core=True, **options)))

    assert drawn(per_intent=5) == drawn(per_intent=5)
    assert len(set(drawn(per_intent=5)) & set(drawn(per_intent=5, seed=1))) < 0.2 * len(drawn(per_intent=5))
    few = drawn(per_intent=5)
    assert len(few) <= 5 * len(GRAMMAR.core)
    assert {pair.intent for pair in few} == {intent.name for intent in GRAMMAR.core}


# --- lessons -------------------------------------------------------------------------------------------------


def test_the_glossary_explains_commands_of_the_grammar() -> None:
    found = glossary()
    assert len(found) >= 40
    for name, sentences in found.items():
        assert sentences, name
        for sentence in sentences:
            assert isinstance(sentence, str)
            assert len(sentence.split()) >= 4, (name, sentence)
            assert sentence == " ".join(sentence.split())
    everything = " ".join(intent.command for intent in GRAMMAR.intents)
    assert sum(name.split()[0] in everything for name in found) >= 0.95 * len(found)  # the rest are topics


@pytest.mark.parametrize("core_only", [True, False])
def test_lessons_hold_no_held_out_pair(request: pytest.FixtureRequest, core_only: bool) -> None:
    held_out = request.getfixturevalue("core" if core_only else "whole")
    documents = [Document(text, "lessons") for text in lessons(LessonOptions(per_intent=40, core=core_only))]
    assert len(documents) > 1000
    for split in HELD_OUT:
        assert find_leaks_in_text(held_out[split], documents) == []


def test_lessons_teach_every_command_that_is_trained() -> None:
    options = {"per_intent": 6, "core": True, "seed": 3}
    text = "\n".join(lessons(LessonOptions.model_validate(options)))
    trained = list(pairs(ShellOptions.model_validate(options)))
    assert all(pair.instruction in text and pair.command in text for pair in trained)
    assert all(sentence in text for sentences in glossary().values() for sentence in sentences)


def test_a_split_that_nothing_is_asked_of_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intent without open slots or enough options adds nothing to those sets, and does not hang."""
    bare = Intent("bare", "bash", "uptime", tuple(f"say {word}" for word in "abcdefgh"))
    monkeypatch.setattr(pairs_module, "load_grammar", lambda: Grammar([bare], set(), GRAMMAR.slots))
    counts = {split: len(list(pairs(ShellOptions(split=split)))) for split in get_args(Split)}
    assert counts == {"train": 7, "values": 0, "wordings": 1, "combinations": 0}
