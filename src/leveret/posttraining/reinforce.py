"""Group relative policy optimisation (GRPO): answers that got more than others to the same prompt are made likelier.

    rewards of a group [G] --advantages--> [G] --how likely the model finds each answer's tokens--> loss

One update for each rollout, so that the policy that learns is the one that answered: its ratio to the latter is 1, and
there is nothing to clip. What is left of the published objective, with the advantage A of answer o of |o| tokens and
pi the probability of a token, is per prompt

    grpo      - 1/G sum over o of  A / |o| * sum over tokens of log pi         A = (r - mean r) / (std r + 1e-4)
    dr-grpo   - 1/G sum over o of  A / L   * sum over tokens of log pi         A = r - mean r,  L = max_new_tokens

(Shao et al., 2024, "DeepSeekMath"; Liu et al., 2025, "Understanding R1-Zero-Like Training"), which has the gradient of
theirs; its value says nothing. With `kl` each token adds kl * (exp d - d - 1) to -A log pi, d = log ref - log pi
(Schulman, 2020, "Approximating KL Divergence", k3; Shao et al., equation 4).

B rows, T tokens, N positions learnt from, C hidden size, G answers to a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.data.batches import IGNORED, Batch
from leveret.model.decoder import Decoder
from leveret.posttraining.config import ReinforceConfig
from leveret.training.cross_entropy import linear_token_losses
from leveret.training.objective import final_states, learnt_from

LEAST_SPREAD = 1e-4


def advantages(rewards_PG: Tensor, form: str) -> Tensor:
    """What each answer got more than its group's mean; grpo: in standard deviations. Nothing where all are equal."""
    above = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return above if form == "dr-grpo" else above / (rewards_PG.std(1, keepdim=True) + LEAST_SPREAD)


class Reinforce:
    """The objective above. A batch has an answer in each row, and `known` [B, 1] is its advantage.

    base: what the model is to stay near, frozen; None where kl is 0.
    """

    def __init__(self, config: ReinforceConfig, base: Decoder | None = None) -> None:
        assert (base is not None) == (config.kl > 0)
        self.form, self.temperature, self.longest = config.form, config.temperature, config.max_new_tokens
        self.kl, self.base = config.kl, base

    def weight(self, batch: Batch) -> int:
        """Answers: groups, times the size of one."""
        return batch.learnt_documents

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        assert batch.known is not None
        losses_N, row_N = self._losses(model, batch)
        learnt_B = (batch.targets != IGNORED).sum(1).clamp_min(1)
        size_B = learnt_B if self.form == "grpo" else torch.full_like(learnt_B, self.longest)
        share_N = 1 / size_B.to(losses_N.dtype)[row_N]
        loss_N = batch.known[:, 0].to(losses_N.dtype)[row_N] * losses_N
        if self.base is not None:
            loss_N = loss_N + self.kl * self._divergence(losses_N, batch)
        return (share_N * loss_N).sum()

    @torch.no_grad()
    def divergence(self, model: Decoder, batch: Batch) -> Tensor:
        """The divergence from the base, summed over a batch's tokens, in nats."""
        losses_N, _ = self._losses(model, batch)
        return self._divergence(losses_N, batch).sum()

    def _divergence(self, losses_N: Tensor, batch: Batch) -> Tensor:
        assert self.base is not None
        with torch.no_grad():
            base_N, _ = self._losses(self.base, batch)
        less_N = losses_N - base_N
        return less_N.exp() - less_N - 1

    def _losses(self, model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log pi of every token at the temperature of the sampling, and its row: [N] each."""
        hidden, targets = final_states(model, batch), batch.targets.flatten()
        row = torch.arange(batch.targets.numel(), device=targets.device) // batch.targets.shape[1]
        hidden_NC, targets_N, row_N = learnt_from(batch, hidden, targets, row)
        cap = model.config.logit_softcap
        cooled = None if cap is None else cap / self.temperature  # cap * tanh(x / cap) / t, as of logits x / t
        return linear_token_losses(
            hidden_NC / self.temperature, model.lm_head.weight, targets_N, IGNORED, cooled
        ), row_N
