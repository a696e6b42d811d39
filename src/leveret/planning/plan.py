"""From what somebody has (money, hours, data) to what to train with it.

    wish --> shapes (the depth dial's, or a recipe's) --> tokens that each can have --> the least expected loss

No shape is a rule of this file: it is our own recipe with another depth, from which the rest follows (depth.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from leveret.display import duration
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.calibration import find_calibration
from leveret.planning.cost import Cost, Machine, training_cost
from leveret.planning.describe import expected_model
from leveret.planning.laws import DEFAULT, MOST_EPOCHS, Fit, find_fit
from leveret.planning.machines import Place, need_price
from leveret.recipe import Recipe, anchored, load_recipe, shipped_recipes, to_yaml
from leveret.strangers.documents import read_yaml
from leveret.training.config import TrainingConfig
from leveret.training.saving import space_needed

BASE = "leveret-124m"
"""The recipe whose depth a plan turns."""
DEPTHS = range(2, 49)
LEAST_RATIO = 5.0
"""Tokens of a parameter below which no plan goes: a smaller model does better with as much compute."""
HARDLY = 0.005
"""Nats that decide nothing."""
TURNS = 8
"""How often the best shape is looked for anew at the speed of the one before."""
CORPUS_TOKENS = {"sample-10BT": 1e10}
"""Tokens of a hub's subset, about: 10,001,252,352 with SmolLM2's tokenizer (l20-edu-135m)."""
BYTES_A_TOKEN = {"gpt2": 4.8, "cl100k_base": 5.0}
"""By tokenizer, of English textbooks (openstax), the nearest to FineWeb-Edu at hand; tests/planning/test_plan.py."""


@dataclass(frozen=True)
class Wish:
    """What somebody has or wants.

    recipe: a name or a file; None: the depth dial's shapes. budget: dollars. data_tokens: how many different ones there
    are. fit: of laws.FITS.
    """

    recipe: str | None = None
    budget: float | None = None
    hours: float | None = None
    tokens: float | None = None
    params: float | None = None
    data_tokens: float | None = None
    fit: str = DEFAULT

    def seconds(self, place: Place) -> float | None:
        """The longest it may take there; None: as long as it does."""
        limits = [] if self.hours is None else [self.hours * 3600]
        if self.budget is not None:
            limits.append(self.budget / (need_price(place) * place.gpus) * 3600)
        return min(limits, default=None)

    def limit(self) -> str:
        """budget and hours, in words."""
        said = [] if self.budget is None else [f"${self.budget:,g}"]
        return " and ".join(said + ([] if self.hours is None else [f"{self.hours:g} h"]))


@dataclass(frozen=True)
class Shape:
    """A model that comes into question. base: where the recipe's paths start from. depth: of the dial, if it is one."""

    recipe: Recipe
    base: Path
    depth: int | None

    @cached_property
    def stage(self) -> str:
        return next(iter(self.recipe.stages))

    @property
    def config(self) -> TrainingConfig:
        return self.recipe.stages[self.stage]

    @cached_property
    def model(self) -> ModelConfig:
        return expected_model(self.recipe)

    @property
    def length(self) -> int:
        return self.recipe.row_length(self.stage)

    @cached_property
    def parameters(self) -> int:
        """All of them, tables too, as the published fits count."""
        return count_parameters(self.model).total

    @cached_property
    def flops(self) -> int:
        """Of a token."""
        return flops_per_token(self.model, self.length, self.config.gradient_checkpointing)

    def own_tokens(self, unique: float | None) -> float:
        """What the recipe itself says.

        Raises:
            UserError: it counts in epochs, and nobody says of how much.
        """
        config = self.config
        if config.epochs is not None and unique is None:
            raise UserError(f"{self.recipe.name} counts in epochs; --data-tokens says how many tokens there are")
        return (
            config.tokens
            or (config.steps or 0) * config.batch_size * self.length
            or (config.epochs or 0) * (unique or 0)
        )

    def unique(self, wish: Wish) -> float | None:
        """Different tokens that there are; None: more than enough, for all that is known."""
        known = [CORPUS_TOKENS.get(source.subset or "") for source in self.recipe.data.sources]
        return wish.data_tokens or (sum(each or 0 for each in known) if all(known) and known else None)


@dataclass(frozen=True)
class Plan:
    """What to train, and what comes of it.

    text: the recipe's YAML. unique: different tokens that there are; None: as many as are read. expected: nats per
    token; band: to either side of it, for 80%. checkpoint_bytes: on disk at most. data_bytes: of text to prepare, None
    where nobody knows; shard_bytes: of its tokens. notes: what else the reader should know.
    """

    wish: Wish
    place: Place
    shape: Shape
    text: str
    steps: int
    machine: Machine
    cost: Cost
    unique: float | None
    fit: Fit
    expected: float
    band: float
    bits_per_byte: float | None
    checkpoint_bytes: int
    data_bytes: float | None
    shard_bytes: float
    notes: list[str]

    @property
    def epochs(self) -> float:
        """Passes over the different tokens."""
        return self.cost.tokens / self.unique if self.unique else 1.0


def make_plan(wish: Wish, place: Place) -> Plan:
    """The plan with the least expected loss of those that the wish and the place allow, and the smallest model of those
    that hardly differ.

    Raises:
        UserError: none is possible; the message says what would be.
    """
    fit, shapes = find_fit(wish.fit), _shapes(wish)
    known = [shape for shape in shapes if _mfu(shape, place) is not None]
    refused: list[UserError] = []
    chosen = known[0] if known else shapes[0]
    for _ in range(TURNS):
        # At one speed for all: what was measured at one size and not at another is no reason to take it.
        ranked = _ranked(known or shapes, wish, replace(place, mfu=_mfu(chosen, place)), fit, refused)
        if not ranked or ranked[0] is chosen:
            break
        chosen = ranked[0]
    for shape in ranked:
        try:
            return _complete(shape, _tokens(shape, wish, place), wish, place, _fit_of(shape, fit))
        except UserError as error:
            refused.append(error)
    if ranked or len(shapes) == 1:
        raise refused[-1]
    raise UserError(_impossible(known, shapes, wish, place))


def _mfu(shape: Shape, place: Place) -> float | None:
    """None: nobody knows it."""
    try:
        return place.machine(shape.flops).mfu
    except UserError:
        return None


def _ranked(shapes: Sequence[Shape], wish: Wish, place: Place, fit: Fit, refused: list[UserError]) -> list[Shape]:
    """Those that are possible, the best first; why the others are not goes into refused."""
    found = []
    for shape in shapes:
        try:
            tokens = _tokens(shape, wish, place)
        except UserError as error:
            refused.append(error)
        else:
            found.append((_fit_of(shape, fit).loss(shape.parameters, tokens, shape.unique(wish)), shape))
    best = min((loss for loss, _ in found), default=0.0)
    ordered = sorted(found, key=lambda each: (max(each[0], best + HARDLY), each[1].parameters))
    return [shape for _, shape in ordered]


def _shapes(wish: Wish) -> Sequence[Shape]:
    """Those that come into question: the recipe's, the nearest to params or tokens, else every depth."""
    if wish.recipe is not None:
        recipe, base = load_recipe(wish.recipe)
        return [Shape(recipe, base, None)]
    if wish.params is not None:
        wanted = wish.params
        return [min(_dial(), key=lambda shape: abs(math.log(shape.parameters / wanted)))]
    if wish.budget is None and wish.hours is None:
        if wish.tokens is None:
            raise UserError("say what there is: --budget, --hours, --tokens, --params or --recipe")
        tokens = wish.tokens
        return [min(_dial(), key=lambda shape: abs(math.log(shape.own_tokens(None) / tokens)))]
    return _dial()


@lru_cache(maxsize=1)
def _dial() -> list[Shape]:
    return [Shape(*load_recipe(BASE, [f"model.depth={depth}"]), depth) for depth in DEPTHS]


def _tokens(shape: Shape, wish: Wish, place: Place) -> float:
    """What this shape reads there.

    Raises:
        UserError: nobody knows how fast it is there, or the budget is too small for it.
    """
    limit, unique = wish.seconds(place), shape.unique(wish)
    if limit is None:
        return wish.tokens or shape.own_tokens(unique)
    machine = place.machine(shape.flops)
    paid = limit * machine.flops_per_second / shape.flops
    if paid < (wish.tokens or LEAST_RATIO * shape.parameters):
        raise UserError(_too_little(shape, wish, place))
    if wish.tokens is not None:
        return wish.tokens
    most = MOST_EPOCHS * unique if unique else math.inf
    if most < LEAST_RATIO * shape.parameters and wish.recipe is None:
        raise UserError(f"{MOST_EPOCHS} passes over {count(unique or 0)} tokens are too few for a model of "
                        f"{count(shape.parameters)} parameters; get more text, or name a recipe")  # fmt: skip
    return _rounded(min(paid, most))


def _fit_of(shape: Shape, fit: Fit) -> Fit:
    """The fit as it is calibrated for this corpus, tokenizer and recipe, if it is."""
    found = find_calibration(shape.recipe, fit.name)
    return fit if found is None else found.fit


def _complete(shape: Shape, tokens: float, wish: Wish, place: Place, fit: Fit) -> Plan:
    """Everything about a shape that reads so many tokens. Raises UserError where it does not fit into memory."""
    shape, text = _final(shape, tokens, wish)
    config, model = shape.config, shape.model
    steps = -(-int(tokens) // (config.batch_size * shape.length))
    machine = place.machine(shape.flops)
    cost = training_cost(model, config, shape.length, steps, machine)
    unique = shape.unique(wish)
    guessing = math.log(model.vocabulary)  # the nats of one who knows nothing
    expected = min(fit.loss(shape.parameters, cost.tokens, unique), guessing)
    read, calibration = min(cost.tokens, unique or math.inf), find_calibration(shape.recipe, fit.name)
    bytes_a_token = calibration.bytes_a_token if calibration else BYTES_A_TOKEN.get(shape.recipe.tokenizer.source or "")
    return Plan(
        wish=wish,
        place=place,
        shape=shape,
        text=text,
        steps=steps,
        machine=machine,
        cost=cost,
        unique=unique,
        fit=fit,
        expected=expected,
        band=fit.band_at(shape.parameters, cost.tokens, unique),
        bits_per_byte=bytes_a_token and expected / math.log(2) / bytes_a_token,
        checkpoint_bytes=space_needed(model, config, steps),
        data_bytes=bytes_a_token and read * bytes_a_token,
        shard_bytes=read * (2 if model.vocabulary <= 2**16 else 4),
        notes=_notes(shape, cost, unique, wish, place) + _beyond(fit, shape),
    )


def _final(shape: Shape, tokens: float, wish: Wish) -> tuple[Shape, str]:
    """The shape with its tokens and what follows from them, and the text of its recipe."""
    if wish.recipe is not None:
        recipe, base = shape.recipe, shape.base
        if wish.tokens or wish.budget or wish.hours:
            stage = shape.stage
            changes = [f"{stage}.{key}=null" for key in ("steps", "epochs")] + [f"{stage}.tokens={int(tokens)}"]
            recipe, base = load_recipe(wish.recipe, changes)
        return Shape(recipe, base, None), to_yaml(anchored(recipe, base))
    assert shape.depth is not None
    name = f"plan-{round(shape.parameters / 1e6)}m"
    said = f"{count(shape.parameters)} parameters on {count(tokens)} tokens, planned for {_what(wish)}."
    changes = [f"name={name}", f'description="{said}"', f"model.depth={shape.depth}", f"pretrain.tokens={int(tokens)}"]
    recipe, base = load_recipe(BASE, changes)
    content = read_yaml(shipped_recipes()[BASE])
    content |= {"name": name, "description": said}
    content["model"]["depth"] = shape.depth
    content["pretrain"]["tokens"] = int(tokens)
    return replace(shape, recipe=recipe, base=base), yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _what(wish: Wish) -> str:
    """The wish in words."""
    said = [wish.limit()] if wish.limit() else []
    said += [f"{count(wish.params)} parameters"] if wish.params else []
    said += [f"{count(wish.tokens)} tokens"] if wish.tokens else []
    return ", ".join(said)


def _notes(shape: Shape, cost: Cost, unique: float | None, wish: Wish, place: Place) -> list[str]:
    notes = []
    if unique and cost.tokens > 1.05 * unique:
        epochs = cost.tokens / unique
        worth = f"{epochs:.1f} passes over {count(unique)} tokens"
        if epochs > MOST_EPOCHS + 0.5:
            notes.append(
                f"{worth}: beyond {MOST_EPOCHS} repeated data is worth next to nothing; get more, or stop earlier"
            )
        else:
            notes.append(f"{worth}; repeated ones are counted for less (Muennighoff et al., 2023)")
    limit = wish.seconds(place)
    if limit is not None and unique and cost.tokens >= 0.99 * MOST_EPOCHS * unique and cost.seconds < 0.9 * limit:
        notes.append("the data is used up before the budget is")
    later = [name for name in shape.recipe.stages if name != shape.stage]
    if later:
        notes.append(f"{', '.join(later)} not counted: its steps follow from its data")
    if cost.tokens < LEAST_RATIO * shape.parameters:
        notes.append("fewer than five tokens a parameter: a smaller model would do better with as much compute")
    return notes


def _beyond(fit: Fit, shape: Shape) -> list[str]:
    """What is said of a model that is smaller than all that the law has seen."""
    if fit.calibrated or shape.parameters >= fit.smallest:
        return []
    return [f"the law of loss has seen no model below {count(fit.smallest)} parameters and is wrong by more than its "
            "band there: calibrate it (leveret plan calibrate)"]  # fmt: skip


def _impossible(known: Sequence[Shape], shapes: Sequence[Shape], wish: Wish, place: Place) -> str:
    """Why no shape is possible, and what the least is that would be."""
    try:
        _tokens(known[0] if known else shapes[len(shapes) // 4], wish, place)
    except UserError as error:
        return str(error)
    return f"nothing fits into {_what(wish)} on {place.gpus} x {place.gpu.alias}; give more"


def _too_little(shape: Shape, wish: Wish, place: Place) -> str:
    machine = place.machine(shape.flops)
    tokens = wish.tokens or LEAST_RATIO * shape.parameters
    which = f"{count(tokens)} tokens for {count(shape.parameters)} parameters"
    if wish.recipe is None and wish.params is None and place.mfu is None:
        which += ", the smallest model whose speed there is known (--mfu or --probe let smaller ones in)"
    paid = wish.seconds(place)
    assert paid is not None
    return (
        f"{wish.limit()} is {duration(paid)} on {place.gpus} x {place.gpu.alias}, too little for {which}: that takes "
        f"{_asked(tokens * shape.flops / machine.flops_per_second, place)}"
    )


def _asked(seconds: float, place: Place) -> str:
    dollars = "" if place.price is None else f", ${_up(place.price * place.gpus * seconds / 3600)}"
    return f"{duration(seconds)}{dollars}"


def _up(dollars: float) -> str:
    return f"{math.ceil(dollars * 100) / 100:,.2f}"


def _rounded(tokens: float) -> float:
    """Down to three figures."""
    unit = 10 ** max(0, math.floor(math.log10(max(tokens, 1))) - 2)
    return float(int(tokens / unit) * unit)


def count(number: float) -> str:
    """124M, 10B: three figures at most."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def read_count(text: str) -> float:
    """The inverse of count: 124M, 10B, 1.5e9 or plain numbers.

    Raises:
        UserError: it is no number above zero.
    """
    units = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
    plain = text.strip().lower().replace("_", "").removeprefix("$")
    factor = units.get(plain[-1:], 1.0)
    try:
        value = float(plain.rstrip("kmbt")) * factor
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise UserError(f"{text!r} is no number above zero; write 10B, 124M or 1.5e9")
    return value
