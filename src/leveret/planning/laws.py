"""Loss foretold from parameters and tokens, by published fits; repeated data counts for less.

    L(N, D) = E + A / N^alpha + B / D^beta          N parameters, tables among them; D tokens read

Corpus and tokenizer shift a fit by more than what doubling the compute gains: nothing of this is exact before it is
calibrated (calibration.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from leveret.errors import UserError

BAND = 0.25
"""Nats to either side of an uncalibrated prediction, for 80%."""
NORMAL_80 = 1.2816
"""Standard deviations to either side of the mean that hold 80% of a normal distribution."""
REPEATED_TOKENS, REPEATED_PARAMETERS = 15.387756, 5.309743
"""R*_D and R*_N of Muennighoff et al. (2023), equations 16 and 17: how fast repeated tokens, and parameters beyond
those that the unique tokens pay for, lose their worth."""
MOST_EPOCHS = 16
"""Beyond which no plan repeats the data: there what is read once more is worth 1/e of what it was (the same paper)."""


@dataclass(frozen=True)
class Fit:
    """A fitted law, with its source. band: nats to either side, for 80%, where it has no rivals.

    offset (nats) and efficiency come from calibration. A parameter and a token count as `efficiency` of those that the
    law was fitted on. Both do: below the smallest model that a law was fitted on (smallest, in parameters) it is too
    steep in them. rivals: other laws that what it was calibrated on allows as well; where they part, the band grows.
    """

    name: str
    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    smallest: float
    offset: float = 0.0
    efficiency: float = 1.0
    band: float = BAND
    rivals: tuple[Fit, ...] = ()

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """Nats per token after reading so many tokens, `unique` different ones (None: all)."""
        if unique is not None and tokens > unique:
            parameters, tokens = self.effective(parameters, tokens, unique)
        return self.E + self.offset + self.reducible(parameters, tokens)

    def band_at(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """Nats to either side of that loss, for 80%: its own band and the distance of the farthest rival, added as
        independent errors are."""
        expected = self.loss(parameters, tokens, unique)
        apart = [abs(rival.loss(parameters, tokens, unique) - expected) for rival in self.rivals]
        return math.hypot(self.band, max(apart, default=0.0))

    def reducible(self, parameters: float, tokens: float) -> float:
        """What more parameters and tokens would take away."""
        worth = self.efficiency
        return float(self.A / (worth * parameters) ** self.alpha + self.B / (worth * tokens) ** self.beta)

    def effective(self, parameters: float, tokens: float, unique: float) -> tuple[float, float]:
        """(N', D'): the parameters and tokens, read once each, that are worth as much (Muennighoff et al., 2023)."""
        repeats = tokens / unique - 1
        worth = unique * (1 + REPEATED_TOKENS * -math.expm1(-repeats / REPEATED_TOKENS))
        paid = min(parameters, self.optimal_parameters(unique))
        excess = parameters / paid - 1
        return paid * (1 + REPEATED_PARAMETERS * -math.expm1(-excess / REPEATED_PARAMETERS)), worth

    def optimal_parameters(self, tokens: float) -> float:
        """Parameters for which so many tokens are the best use of compute, where that is 6 N D."""
        return float((self._ratio * tokens**self.beta) ** (1 / self.alpha))

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) with the least loss for so many operations, 6 for each parameter and token."""
        both = self.alpha + self.beta
        parameters = float(self._ratio ** (1 / both) * (flops / 6) ** (self.beta / both))
        return parameters, flops / 6 / parameters

    @property
    def calibrated(self) -> bool:
        """Whether it was moved to somebody's own runs."""
        return bool(self.rivals)

    @property
    def _ratio(self) -> float:
        """N^alpha / D^beta where a little more of either takes away as much, for as much compute."""
        return float(self.alpha * self.A / (self.beta * self.B) * self.efficiency ** (self.beta - self.alpha))

    def flattened(self, steepness: float) -> Fit:
        """With exponents that are this share of its own; a term of one nat stays one."""
        return replace(
            self,
            A=self.A**steepness,
            B=self.B**steepness,
            alpha=self.alpha * steepness,
            beta=self.beta * steepness,
        )

    def moved(self, offset: float, efficiency: float) -> Fit:
        """This fit for another corpus, tokenizer and way of training."""
        return replace(self, offset=offset, efficiency=efficiency)


FITS = {
    fit.name: fit
    for fit in (
        Fit(
            "epoch-2024",
            "Besiroglu et al. (2024), a refit of Hoffmann's runs",
            1.8172, 482.01, 2085.43, 0.3478, 0.3658, 44e6,
        ),
        Fit(
            "hoffmann-2022",
            "Hoffmann et al. (2022), approach 3, unrounded",
            1.6934, 406.4, 410.7, 0.3392, 0.2849, 44e6,
        ),
        Fit(
            "muennighoff-2023",
            "Muennighoff et al. (2023), fitted on C4",
            math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596, 7e6,
        ),
    )
}  # fmt: skip
"""By name. All of them count repeated data as Muennighoff et al. do."""
DEFAULT = "epoch-2024"


def find_fit(name: str) -> Fit:
    """Raises UserError for a name that no fit has."""
    if name not in FITS:
        raise UserError(f"--fit {name} is not one of {', '.join(FITS)}")
    return FITS[name]
