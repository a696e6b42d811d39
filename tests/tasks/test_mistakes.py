"""Generated preferences: the chosen answer is the task's, the rejected one is another and looks like one."""

from collections import Counter

import pytest

from leveret.data.examples import Preference
from leveret.tasks.generators import EXAMPLES, PREFERENCES
from leveret.tasks.shell.grammar import is_new
from leveret.tasks.shell.pairs import ShellOptions, drawings


def shell(**options: object) -> list[Preference]:
    return list(PREFERENCES["shell-preferences"](per_intent=6, **options))


@pytest.mark.parametrize("split", ["train", "values", "wordings", "combinations"])
def test_shell_preferences_choose_what_the_pairs_answer(split: str) -> None:
    answers = {e.instruction: e.response for e in EXAMPLES["shell"](per_intent=6, core=True, split=split)}
    found = shell(core=True, split=split)
    assert len(found) > 0.95 * len(answers)
    assert all(answers[each.example.instruction] == each.chosen != each.rejected for each in found)


def test_every_kind_of_mistake_is_made() -> None:
    found = shell()
    kinds = Counter(each.meta["mistake"] for each in found)
    assert min(kinds[kind] for kind in ("value", "flag", "intent")) > len(found) / 12
    assert all(len(each.rejected) < len(each.chosen) for each in found if each.meta["mistake"] == "flag")


def test_mistakes_of_training_show_no_value_that_is_kept_out_of_it() -> None:
    """One intent's values, by the words of the commands: what is held out comes in held-out pairs only."""
    held_out = {
        value.typed
        for _, drawn in drawings(ShellOptions(split="values", per_intent=6, core=True))
        for value in drawn.values.values()
        if is_new(value.typed) and len(value.typed) > 6
    }
    found = shell(core=True)
    answered = {word for each in found for word in each.chosen.split()}  # some are the names of other things too
    assert {word for each in found for word in each.rejected.split()} & held_out <= answered
    assert {word for each in shell(core=True, split="values") for word in each.rejected.split()} & held_out


def test_arithmetic_preferences_have_one_wrong_digit() -> None:
    found = list(PREFERENCES["arithmetic-preferences"](count=300))
    right = {e.instruction: e.response for e in EXAMPLES["arithmetic"](count=300)}
    for each in found:
        assert each.chosen == right[each.example.instruction]
        assert len(each.rejected) == len(each.chosen)
        assert sum(a != b for a, b in zip(each.chosen, each.rejected, strict=True)) == 1
        assert str(int(each.rejected)) == each.rejected
    assert len(found) == 300


def test_the_same_options_make_the_same_preferences() -> None:
    assert shell(core=True, seed=3) == shell(core=True, seed=3) != shell(core=True, seed=4)
