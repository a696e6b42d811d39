"""Batches made on the way: a step's prompts are answered by the model as it is then, and the answers are graded.

    step --permutation--> P prompts --engine, G times each--> answers --Grader--> rewards [P, G] --> advantages
         --> rows of prompt + answer, an answer each, with its advantage

The prompts are a function of (seed, epoch, step), the draws of (seed, step, number of the answer), and the weights
those of the step: a training that goes on from a checkpoint gets the same answers.

P prompts, G answers to each, B = P * G rows, T positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.shards import TokenStore
from leveret.data.windows import IntArray
from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Completion, Engine
from leveret.model.decoder import Decoder
from leveret.posttraining.config import ReinforceConfig
from leveret.posttraining.prompts import prompt_of, read_references
from leveret.posttraining.reinforce import Reinforce, advantages
from leveret.posttraining.rewards import Grade, Grader
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.parallel import ALONE, Group


def rows_of(answers: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, length: int, pad: int) -> Batch:
    """Prompts with their answers, ids each, as a batch of so many rows; only the answers are learnt."""
    inputs_BT = np.full((rows, length), pad, dtype=np.int64)
    targets_BT = np.full((rows, length), IGNORED, dtype=np.int64)
    for row, (prompt, answer) in enumerate(answers):
        whole = [*prompt, *answer]
        inputs_BT[row, : len(whole) - 1] = whole[:-1]
        targets_BT[row, len(prompt) - 1 : len(whole) - 1] = answer
    return Batch(torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT))


class Rollouts(Batches):
    """The batches of one split of prompts, answered by `model`. Windows are counted in prompts, rows in answers.

    Args:
        dtype: of the model's matrix products.
        objective: measures how far the model is from its base, where that is part of it.
    """

    ahead = False
    most_documents = 1

    def __init__(
        self,
        store: TokenStore,
        split: str,
        config: ReinforceConfig,
        model: Decoder,
        tokenizer: Tokenizer,
        objective: Reinforce,
        dtype: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        length = store.manifest["examples"]["longest_prompt"] + config.max_new_tokens - 1
        super().__init__(
            store.split(split), config.prompts, length, config.seed, tokenizer.pad_id or 0,
            known=np.empty(0, dtype=np.float32), rank=group.rank, ranks=group.ranks,
        )  # fmt: skip
        self.references = read_references(store, split)
        self.config, self.model, self.tokenizer, self.objective = config, model, tokenizer, objective
        self.dtype, self.group = dtype, group
        self.grader = Grader(config.reward)
        self.sums: dict[str, float] = {}

    @property
    def share(self) -> int:
        """This rank's rows of a step's batch: whole groups."""
        return super().share * self.config.group_size

    def windows_of(self, step: int) -> IntArray:
        """The prompts that a step answers, one for each row of all ranks."""
        return np.repeat(super().windows_of(step), self.config.group_size)

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's answers, by the model as it is now."""
        numbers = self.windows_of(step)[self.rank * self.share : (self.rank + 1) * self.share]
        config = SamplingConfig(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=_seed(self.seed, self.place(step)) + self.rank * self.share,
        )
        asked, completions, grades = self._answer(self.model, numbers, config)
        rewards_B = torch.tensor([grade.reward for grade in grades], dtype=torch.float64)
        rewards_PG = rewards_B.unflatten(0, (len(grades) // self.config.group_size, self.config.group_size))
        known_B = torch.zeros(self.share, dtype=torch.float32)
        known_B[: len(grades)] = advantages(rewards_PG, self.config.form).flatten()
        end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        answers = [c.tokens + end * (c.finish == "stop") for c in completions]
        batch = rows_of(list(zip(asked, answers, strict=True)), self.share, self.length, self.pad_id)
        self.sums = _sums(answers, completions, grades)
        self.sums["groups"] = len(rewards_PG)
        self.sums["even_groups"] = int((rewards_PG.amax(1) == rewards_PG.amin(1)).sum())
        if self.config.kl:
            self.sums["kl"] = self._divergence(batch)
        return replace(batch, known=known_B[:, None])

    def told(self) -> dict[str, float]:
        """What the answers of the last step were like, over all ranks.

        reward: mean. exact, ended: shares of the answers. parses, effect: shares of those that were asked for it.
        even_groups: share of the groups whose rewards are all equal, from which nothing is learnt. answer_tokens: mean
        length. kl: nats a token from the base.
        """
        names = [*_COUNTED, "kl", "groups", "even_groups"]
        total = dict(zip(names, self.group.totals(*(self.sums.get(name, 0.0) for name in names)), strict=True))
        shares = _shares(total) | {"even_groups": total["even_groups"] / max(total["groups"], 1)}
        if self.config.kl:
            shares["kl"] = total["kl"] / max(total["tokens"], 1)
        return shares

    def held_out(self, model: Decoder, most: int | None) -> dict[str, float]:
        """What a model's greedy answers to the prompts of this split are like, or to `most` evenly spread over it."""
        count = len(self.split.windows)
        numbers = np.arange(count)
        if most is not None and most < count:
            numbers = np.linspace(0, count - 1, most).astype(np.int64)
        sums = dict.fromkeys(_COUNTED, 0.0)
        for part in np.array_split(numbers, -(-len(numbers) // self.config.batch_size)):
            config = SamplingConfig(max_new_tokens=self.config.max_new_tokens)
            _, completions, grades = self._answer(model, part, config)
            for name, value in _sums([c.tokens for c in completions], completions, grades).items():
                sums[name] += value
        return {f"validation_{name}": value for name, value in _shares(sums).items()}

    def _answer(
        self, model: Decoder, windows: IntArray, config: SamplingConfig
    ) -> tuple[list[list[int]], list[Completion], list[Grade]]:
        """The prompts of these windows, their answers by the model, and the grades of these."""
        prompts = [self._prompt(int(window)) for window in windows]
        was_training = model.training
        completions = Engine(model, self.tokenizer, self.dtype).generate(prompts, config)
        model.train(was_training)
        references = [self.references[window] for window in windows]
        graded = [(r, c.text, c.finish == "stop") for r, c in zip(references, completions, strict=True)]
        return prompts, completions, self.grader.grade(graded)

    def _prompt(self, window: int) -> list[int]:
        """Raises UserError where the shards are damaged: the model has to know every id."""
        prompt = prompt_of(self.split, window)
        if max(prompt) >= (vocabulary := self.model.config.vocabulary):
            raise UserError(
                f"prompt {window} has token ids outside the vocabulary of {vocabulary}; its shards are damaged "
                "(`leveret data verify` names the file): prepare the data again"
            )
        return prompt

    def _divergence(self, batch: Batch) -> float:
        """The model's from its base, summed over the tokens of these answers."""
        device = self.model.embed_tokens.weight.device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not torch.float32):
            return float(self.objective.divergence(self.model, batch.counted().to(device)))


_COUNTED = ("answers", "reward", "exact", "ended", "tokens", "asked", "parses", "judged", "effect")


def _sums(
    answers: Sequence[Sequence[int]], completions: Sequence[Completion], grades: Sequence[Grade]
) -> dict[str, float]:
    """Sums over answers, by the names of _COUNTED."""
    return {
        "answers": len(grades),
        "reward": sum(grade.reward for grade in grades),
        "exact": sum(grade.exact for grade in grades),
        "ended": sum(completion.finish == "stop" for completion in completions),
        "tokens": sum(map(len, answers)),
        "asked": sum(grade.parses is not None for grade in grades),
        "parses": sum(bool(grade.parses) for grade in grades),
        "judged": sum(grade.effect is not None for grade in grades),
        "effect": sum(bool(grade.effect) for grade in grades),
    }


def _shares(sums: dict[str, float]) -> dict[str, float]:
    """Means and shares out of such sums; those that nothing was asked for are left out."""
    answers = max(sums["answers"], 1)
    shares = {name: sums[name] / answers for name in ("reward", "exact", "ended")}
    shares["answer_tokens"] = sums["tokens"] / answers
    if sums["asked"]:
        shares["parses"] = sums["parses"] / sums["asked"]
    if sums["judged"]:
        shares["effect"] = sums["effect"] / sums["judged"]
    return shares


def _seed(seed: int, place: int) -> int:
    """Of the first answer of a step; the next ones follow."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:7], "big")
