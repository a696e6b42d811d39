"""Models whose shape the decoder does not have, computed by transformers, so that they can be compared with.

They are asked the same ids in the same way as our own (evaluation/likelihood.py), only slower. No code of a model's own
is run, and no pickle is read: weights must be safetensors, which are checked first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leveret.errors import UserError
from leveret.evaluation.likelihood import Likelihood, Pair
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Answers, Completion, Schedules
from leveret.strangers.tensors import checked_tensors
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

BATCH_TOKENS = 2048
"""Of a batch at most, padding too."""
CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")
"""Keys of a config.json that say how much a model reads."""


class ForeignEngine(Answers):
    """A model of transformers' as ours are asked; greedy answers one after the other.

    Args:
        folder: with config.json, safetensors and tokenizer.

    Raises:
        UserError: transformers is not there, or cannot read the folder.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ModuleNotFoundError:
            raise UserError("transformers is not installed: pip install 'leveret[eval]'") from None
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"there are no safetensors in {folder}, and pickles such as pytorch_model.bin are not read")
        for file in files:
            checked_tensors(file)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"transformers cannot load {folder} ({' '.join(str(error).split())[:200]})") from None
        known = [value for key in CONTEXTS if isinstance(value := getattr(config, key, None), int)]
        if not known:
            raise UserError(f"{folder / 'config.json'} does not say how many tokens the model reads")
        self.model, self.context = model.to(device).eval(), known[0]
        self.tokenizer = tokenizer_of(folder)
        self.device, self.dtype = device, torch.float32

    def scheduler(self, slots: int, capacity: int | None = None, *, remember: bool = True) -> Schedules:
        raise UserError("a model that transformers computes answers one prompt after the other")

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, ignore_end: bool = False
    ) -> list[Completion]:
        """Greedy answers; the beginning of a prompt that leaves no room is cut."""
        if config.temperature or config.beams > 1:
            raise UserError("a model that transformers computes is only asked for greedy answers")
        completions = []
        for prompt in prompts:
            ids = list(prompt)[-max(1, self.context - config.max_new_tokens) :]
            given = torch.tensor([ids], device=self.device)
            # Without roles of its own, as a base model that was saved so: no token ends its answers.
            end = None if ignore_end else self.tokenizer.eos_id
            made: Any = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=config.max_new_tokens,
                eos_token_id=end,
                pad_token_id=0,
            )
            tokens = made[0, len(ids) :].tolist()
            ended = end is not None and end in tokens
            tokens = tokens[: tokens.index(end)] if ended else tokens
            text = self.tokenizer.decode(tokens)
            completions.append(Completion(text, tokens, "stop" if ended else "length", [], len(ids)))
        return completions

    @torch.inference_mode()
    def likelihoods(self, groups: Sequence[Sequence[Pair]]) -> list[list[Likelihood]]:
        """As evaluation/likelihood.py's, each sequence by itself."""
        cut = [_cut(pair, self.context) for group in groups for pair in group]
        order = sorted(range(len(cut)), key=lambda i: -len(cut[i][0]))
        found: dict[int, Likelihood] = {}
        while order:
            rows = max(1, BATCH_TOKENS // len(cut[order[0]][0]))
            chosen, order = order[:rows], order[rows:]
            found |= dict(zip(chosen, self._read([cut[i] for i in chosen]), strict=True))
        values = iter(found[i] for i in range(len(cut)))
        return [[next(values) for _ in group] for group in groups]

    def _read(self, rows: Sequence[tuple[list[int], int, int, int]]) -> list[Likelihood]:
        longest = max(len(ids) for ids, *_ in rows) - 1
        inputs, seen = torch.zeros((2, len(rows), longest), dtype=torch.long, device=self.device)
        for number, (ids, *_) in enumerate(rows):
            inputs[number, : len(ids) - 1] = torch.tensor(ids[:-1])
            seen[number, : len(ids) - 1] = 1
        logits = self.model(input_ids=inputs, attention_mask=seen).logits
        found = []
        for number, (ids, scored, cut, unscored) in enumerate(rows):
            odds_NV = logits[number, len(ids) - 1 - scored : len(ids) - 1].float()
            targets_N = torch.tensor(ids[len(ids) - scored :], device=self.device)
            value = odds_NV.log_softmax(-1).gather(1, targets_N[:, None]).sum()
            best = bool((odds_NV.argmax(-1) == targets_N).all())
            found.append(Likelihood(float(value), best, cut, unscored))
        return found


def _cut(pair: Pair, context: int) -> tuple[list[int], int, int, int]:
    """The ids that fit with the last one, which is only read, and how many of them are scored; the context's ids that
    were left out, and the continuation's."""
    whole = pair.context + pair.continuation
    over = max(0, len(whole) - context - 1)
    scored = min(len(pair.continuation), context)
    return whole[over:], scored, min(over, len(pair.context)), len(pair.continuation) - scored


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, whichever files transformers makes it from."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        definition = made.backend_tokenizer.to_str()
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"transformers makes no fast tokenizer of {folder} ({str(error)[:200]})") from None
    roles = {role: getattr(made, role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return Tokenizer(definition, SpecialRoles(**roles), made.chat_template)


class ForeignModel:
    """A model that transformers computes, as the suite asks models."""

    def __init__(self, folder: Path, device: torch.device, weights_sha256: str) -> None:
        self.engine = ForeignEngine(folder, device)
        self.weights_sha256 = weights_sha256
        self.chats = self.engine.tokenizer.chat_template is not None

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As LoadedModel's."""
        if self.chats:
            return render(self.engine.tokenizer, messages, add_generation_prompt=True).ids
        return self.engine.tokenizer.encode("\n".join(message["content"] for message in messages))
