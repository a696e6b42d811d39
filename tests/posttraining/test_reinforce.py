"""GRPO: the objective against an independent one, its advantages, and what answers are worth."""

import copy
import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_training import VOCABULARY, decoder
from torch import Tensor

from leveret.data.batches import Batch
from leveret.model.decoder import Decoder
from leveret.posttraining.config import ReinforceConfig
from leveret.posttraining.prompts import Reference
from leveret.posttraining.reinforce import Reinforce, advantages
from leveret.posttraining.rewards import Grader
from leveret.posttraining.rollouts import rows_of
from leveret.tasks.shell import effects

LONGEST = 6
ANSWERS = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 7, 8, 9, 4, 1]), ([9, 8], [2]), ([9, 8], [3, 3, 5])]
ADVANTAGES = [0.7, -1.3, 0.4, 0.9]


def config(**changes: Any) -> ReinforceConfig:
    known = {"examples": [{"paths": ["x.jsonl"]}], "steps": 1, "group_size": 2, "batch_size": 4}
    return ReinforceConfig.model_validate(known | {"max_new_tokens": LONGEST} | changes)


def batch() -> Batch:
    """Two groups of two, and a row that is only filled up."""
    known = torch.tensor([*ADVANTAGES, 0.0], dtype=torch.float64)[:, None]
    return replace(rows_of(ANSWERS, 5, 10, 0), known=known)


def models(**knobs: Any) -> tuple[Decoder, Decoder]:
    """A model in float64, and the base that it has left."""
    model = decoder(**knobs).double()
    base = copy.deepcopy(model).requires_grad_(False)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, base


def published(model: Decoder, base: Decoder, settings: ReinforceConfig) -> Tensor:
    """The published objective, to be minimised, answer by answer and with its ratio and clip; mean over answers."""

    def log_probabilities(of: Decoder, prompt: list[int], answer: list[int]) -> Tensor:
        logits = of(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1] / settings.temperature
        return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]

    total = torch.zeros((), dtype=torch.float64)
    for (prompt, answer), advantage in zip(ANSWERS, ADVANTAGES, strict=True):
        new = log_probabilities(model, prompt, answer)
        ratio = torch.exp(new - new.detach())
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        if settings.kl:
            apart = log_probabilities(base, prompt, answer).detach() - new
            gain = gain - settings.kl * (apart.exp() - apart - 1)
        total = total - gain.sum() / (len(answer) if settings.form == "grpo" else LONGEST)
    return total / len(ANSWERS)


def gradients(model: Decoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))


CASES = [
    {"form": "grpo"},
    {"form": "dr-grpo", "kl": 0.3},
    {"form": "grpo", "kl": 0.2, "temperature": 0.7},
]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("changes", CASES)
def test_the_gradient_is_that_of_the_published_objective(changes: dict[str, Any], softcap: float | None) -> None:
    settings, (model, base) = config(**changes), models(logit_softcap=softcap)
    objective, whole = Reinforce(settings, base if settings.kl else None), batch()
    ours = gradients(model, objective.loss(model, whole) / objective.weight(whole.counted()))
    theirs = gradients(model, published(model, base, settings))
    assert max(float(grad.abs().max()) for grad in theirs) > 1e-3
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("changes", CASES)
def test_the_gradient_is_the_slope_of_the_loss(changes: dict[str, Any]) -> None:
    settings, (model, base) = config(**changes), models()
    objective, whole = Reinforce(settings, base if settings.kl else None), batch()
    grads = gradients(model, objective.loss(model, whole))
    torch.manual_seed(7)
    direction = [torch.randn_like(parameter) for parameter in model.parameters()]

    def moved(by: float) -> float:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, way in zip(other.parameters(), direction, strict=True):
                parameter += by * way
            return float(objective.loss(other, whole))

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert slope == pytest.approx(sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True)), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_any_cut_into_micro_batches_gives_the_same_gradient(rows: int) -> None:
    settings, (model, base) = config(kl=0.1), models()
    objective, whole = Reinforce(settings, base), batch()
    parts = [part.counted() for part in whole.split(rows)]
    assert sum(objective.weight(part) for part in parts) == len(ANSWERS) == objective.weight(whole.counted())
    cut = [gradients(model, objective.loss(model, part)) for part in parts]
    for one, *several in zip(gradients(model, objective.loss(model, whole)), *cut, strict=True):
        assert torch.allclose(one, torch.stack(several).sum(0), rtol=1e-9, atol=1e-12)


def test_a_model_that_has_not_left_its_base_is_at_no_distance_from_it() -> None:
    model, base = models()
    objective, whole = Reinforce(config(kl=0.1), base), batch()
    assert float(objective.divergence(base, whole)) == 0.0
    assert float(objective.divergence(model, whole)) > 0.0


def test_advantages_are_what_an_answer_got_more_than_its_group() -> None:
    rewards = [[1.0, 0.0, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0]]
    spread = statistics.stdev(rewards[0])
    above = [value - statistics.mean(rewards[0]) for value in rewards[0]]
    found = advantages(torch.tensor(rewards, dtype=torch.float64), "dr-grpo")
    assert found.tolist() == [pytest.approx(above), [0.0] * 4]
    found = advantages(torch.tensor(rewards, dtype=torch.float64), "grpo")
    assert found.tolist() == [pytest.approx([value / (spread + 1e-4) for value in above]), [0.0] * 4]
    assert math.isclose(float(found[0].sum()), 0, abs_tol=1e-12)


def test_rows_hold_a_prompt_with_its_answer_and_only_that_is_learnt() -> None:
    found = rows_of([([1, 2, 3], [4, 5]), ([6], [7])], 3, 5, 0)
    assert found.inputs.tolist() == [[1, 2, 3, 4, 0], [6, 0, 0, 0, 0], [0] * 5]
    assert found.targets.tolist() == [[-100, -100, 4, 5, -100], [7, -100, -100, -100, -100], [-100] * 5]
    assert found.counted().learnt_documents == 2
    assert max(found.inputs.max(), found.targets.max()) < VOCABULARY


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 6, "group_size": 4}, "batch_size 6 is no multiple of group_size 4"),
        ({"steps": None, "tokens": 100}, "give steps or epochs"),
        ({"parallel": {"kind": "fsdp"}}, "take ddp"),
        ({"patience": 2}, "patience"),
        ({"precision": "fp8"}, "take bf16"),
        ({"loss_kernel": "liger"}, "need chunked"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_an_epoch_answers_every_prompt_once() -> None:
    settings = config(steps=None, epochs=2, group_size=4, batch_size=16)
    assert settings.total_steps(windows=10, sequence_length=1) == 5


# --- rewards -------------------------------------------------------------------------------------------------


def test_a_sum_is_worth_one_if_it_is_exact_and_ended() -> None:
    answers = [("42", True), (" 42\n", True), ("42", False), ("43", True), ("4 2", True), ("", True)]
    grades = Grader().grade([(Reference("42"), text, ended) for text, ended in answers])
    assert [grade.reward for grade in grades] == [1, 1, 0, 0, 0, 0]
    assert {grade.parses for grade in grades} == {None}


COMMAND = Reference("cat notes.txt", "bash")
ANSWERED = ["cat notes.txt", "cat  < notes.txt", "tac notes.txt", "rm notes.txt", "cat 'notes", ""]


def test_a_command_is_worth_its_effect_or_a_little_if_it_can_be_read() -> None:
    grades = Grader().grade([(COMMAND, text, True) for text in ANSWERED] + [(COMMAND, "cat notes.txt", False)])
    assert [grade.reward for grade in grades] == [1, 1, 0.1, 0.1, 0, 0, 0]
    assert [grade.effect for grade in grades] == [True, True, False, False, None, None, None]
    assert [grade.exact for grade in grades] == [True, *[False] * 6]


def test_without_a_sandbox_only_equal_commands_are_worth_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "lack", lambda: "none here")
    grades = Grader().grade([(COMMAND, text, True) for text in ANSWERED])
    assert [grade.reward for grade in grades] == [1, 0.1, 0.1, 0.1, 0, 0]
    assert {grade.effect for grade in grades} == {None}


def test_other_shells_commands_are_only_compared() -> None:
    shown = Reference("Get-Content a.txt", "powershell")
    for kind in ("auto", "shell"):
        grades = Grader(kind).grade([(shown, "Get-Content  a.txt", True), (shown, "cat a.txt", True)])
        assert [(grade.reward, grade.parses) for grade in grades] == [(1, None), (0, None)]


def test_the_recipe_may_say_which_reward_it_is() -> None:
    unnamed = Reference("cat notes.txt")
    assert [Grader(kind).grade([(unnamed, "cat < notes.txt", True)])[0].reward for kind in ("auto", "shell")] == [0, 1]
    assert Grader("answer").grade([(COMMAND, "cat < notes.txt", True)])[0].reward == 0
