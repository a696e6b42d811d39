"""What small runs of a recipe's own say about the loss of larger ones: a ladder, the fit to it, and where it is kept.

recipe --> three narrower models, as many tokens for a parameter --> their held-out losses
       --> calibrations/KEY.json --> offset and efficiency of a published law, and a band
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from leveret.config import config_dir
from leveret.data.shards import TokenSplit, TokenStore
from leveret.depth import BATCH_EXPONENT
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.describe import expected_model
from leveret.planning.laws import FITS, NORMAL_80, Fit
from leveret.recipe import Recipe, digest
from leveret.strangers.documents import read_json

SHARE = 0.01
"""Of the recipe's own work that the ladder takes, about."""
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
"""What larger and smaller models of a recipe differ in."""
OF_THE_CORPUS = ("sources", "filters", "dedup", "document_format", "sequence_length")
"""Keys of data that change what a token of it teaches."""
HELD_OUT_ROWS = 512
"""That every rung is measured on."""
LEAST_BAND = 0.1
"""Nats to either side that a calibrated band has at least: benchmarks/plan_loss.py was once off by 0.09, where leaving
one run of the ladder out told 0.03."""
FLATTEST, STEEPNESS = 0.25, 0.5
"""Shares of the published exponents. With the first they are about those of Kaplan et al. (2020; 0.076 and 0.095),
whose models were as small as a ladder's; large models have the published ones. Three runs cannot tell: from one end to
the other a law fits them worse or better by 0.01 nats, and another seed moves a run's own loss by 0.02. So the middle
is taken, by ratio."""


@dataclass(frozen=True)
class Rung:
    """A run of the ladder. loss: held-out, in nats per token."""

    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Calibration:
    """A law as a ladder has moved it. bytes_a_token: of the held-out text."""

    fit: Fit
    rungs: list[Rung]
    bytes_a_token: float


@dataclass(frozen=True)
class Held:
    """What a small run came to: tokens it read, its held-out loss, and bytes of a token of the held-out text."""

    tokens: int
    loss: float
    bytes_a_token: float


def held_out(store: TokenStore) -> TokenSplit:
    """What losses are measured on. Raises UserError where nothing is held out."""
    if "validation" not in store.manifest["splits"]:
        raise UserError("nothing is held out of this text to measure a loss on; give more documents, or a larger "
                        "data.validation_fraction")  # fmt: skip
    return store.split("validation")


def held_by(run: Path, split: TokenSplit) -> Held:
    """What the run in that directory came to, which is pretrained."""
    summary = read_json(run / "pretrain" / "summary.json")
    return Held(summary["tokens"], summary["final_validation_loss"], split.text_bytes / split.tokens)


def calibrate(recipe: Recipe, train: Callable[[Recipe], Held], law: Fit, share: float = SHARE) -> Calibration:
    """Trains a ladder and moves the law to it. train: trains one recipe.

    Raises:
        UserError: there can be no ladder, or it foretells nothing.
    """
    model = expected_model(recipe)
    rungs, bytes_a_token = [], 0.0
    for small in ladder(recipe, model, share):
        held = train(small)
        rungs.append(Rung(count_parameters(expected_model(small)).total, held.tokens, held.loss))
        bytes_a_token = held.bytes_a_token
    return Calibration(fit_ladder(law, tuple(rungs)), rungs, bytes_a_token)


def ladder(recipe: Recipe, model: ModelConfig, share: float = SHARE) -> list[Recipe]:
    """Three recipes, smallest first, that differ from this one in width and tokens alone, and together take at most
    about that share of its work. model: the recipe's, with its vocabulary.

    The widest is twice as wide as the narrowest. All read as many tokens for a parameter. Batches shrink and the
    tables' rate grows as depth.py has it; a width keeps the proportions of heads and feed-forward layer as far as it
    divides.

    Raises:
        UserError: it has no pretraining, or is too small to have smaller ones.
    """
    config = recipe.pretrain
    if config is None:
        raise UserError(f"{recipe.name} has no pretraining to calibrate; name a recipe that has")
    length = recipe.row_length()
    tokens = config.tokens or (config.steps or 0) * config.batch_size * length
    if not tokens:
        raise UserError("pretrain counts in epochs; give pretrain.tokens=NUMBER to calibrate for")
    full, work = count_parameters(model).total, tokens * flops_per_token(model, length)
    step = 16 if model.hidden_size >= 128 else 8
    best: list[Recipe] = []
    for widest in range(2 * step, model.hidden_size, step):
        rungs = []
        for width in (widest // 2, round(widest / math.sqrt(2)), widest):
            shape = _narrowed(model, max(step, round(width / step) * step))
            part = count_parameters(shape).total / full
            rungs.append((shape, int(tokens * part), part))
        sizes = {shape.hidden_size for shape, _, _ in rungs}
        if sum(read * flops_per_token(shape, length) for shape, read, _ in rungs) > share * work and best:
            break
        if len(sizes) == len(rungs):
            best = [_rung(recipe, model, *each) for each in rungs]
    if not best:
        raise UserError(f"a model {model.hidden_size} wide is too small for a ladder of smaller ones; just train it")
    return best


def _narrowed(model: ModelConfig, width: int) -> ModelConfig:
    """The model at another width."""
    head = model.head_width
    heads = max(1, width // head)
    group = model.num_attention_heads // model.kv_heads
    kv = next(count for count in range(max(1, heads // group), heads + 1) if heads % count == 0)
    inner = max(1, round(model.intermediate_size * width / model.hidden_size))
    changes = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
    }
    return ModelConfig.model_validate(model.model_dump() | changes | {"head_dim": min(head, width)})


def _rung(recipe: Recipe, model: ModelConfig, shape: ModelConfig, tokens: int, part: float) -> Recipe:
    """The recipe for a smaller model, which is validated once, at its end."""
    config = recipe.pretrain
    assert config is not None
    batch = max(1, round(config.batch_size * part**BATCH_EXPONENT))
    rate = config.optimizer.lr * math.sqrt(model.hidden_size / shape.hidden_size)
    optimizer = config.optimizer.model_copy(update={"lr": float(f"{rate:.3g}")})
    changes: dict[str, Any] = {
        "tokens": tokens,
        "steps": None,
        "batch_size": batch,
        "micro_batch_size": "auto",
        "optimizer": optimizer,
        "eval_every": max(1, tokens),
        "eval_batches": max(1, HELD_OUT_ROWS // batch),
    }
    pretrain = config.model_copy(update=changes)
    sizes = {key: getattr(shape, key) for key in SIZES}
    small = recipe.model.model_copy(update=sizes)
    name = f"{recipe.name}-{shape.hidden_size}"
    alone = dict.fromkeys(("finetune", "prefer", "reinforce"))
    return recipe.model_copy(update={"name": name, "model": small, "pretrain": pretrain, "sample_prompts": [], **alone})


@lru_cache(maxsize=32)
def fit_ladder(law: Fit, rungs: tuple[Rung, ...]) -> Fit:
    """The law, half as steep, with the offset and efficiency that fit the rungs best.

    The law as steep as published and the flattest, moved to the same rungs, are its rivals, so that the band grows with
    the distance from the ladder. Near to it, the band is what leaving a rung out changes in the foretelling of it.

    Raises:
        UserError: the losses do not fall from rung to rung, so that nothing can be foretold.
    """
    ordered = sorted(rungs, key=lambda rung: rung.parameters * rung.tokens)
    if any(not large.loss < small.loss for small, large in pairwise(ordered)):
        told = ", ".join(f"{rung.loss:.3f}" for rung in ordered)
        raise UserError(f"the ladder's losses do not fall ({told}), so they foretell nothing; take a larger share")
    half = law.flattened(STEEPNESS)
    found = _least_squares(half, ordered)
    rivals = tuple(_least_squares(law.flattened(steepness), ordered) for steepness in (FLATTEST, 1.0))
    left_out = []
    for rung in ordered:
        without = _least_squares(half, [other for other in ordered if other is not rung])
        left_out.append(_off(without, rung))
    spread = math.sqrt(sum(each**2 for each in left_out) / len(left_out))
    off = max(abs(_off(found, rung)) for rung in ordered)
    told = f"{len(ordered)} small runs of this recipe (off by {off:.3f}), on {law.source}"
    return replace(found, band=max(LEAST_BAND, NORMAL_80 * spread), source=told, rivals=rivals)


def _off(fit: Fit, rung: Rung) -> float:
    return fit.loss(rung.parameters, rung.tokens) - rung.loss


def _squares(fit: Fit, rungs: Sequence[Rung]) -> float:
    return sum(_off(fit, rung) ** 2 for rung in rungs)


def _least_squares(law: Fit, rungs: Sequence[Rung]) -> Fit:
    """The law moved to the rungs. The offset is the mean of what is left; the efficiency is looked for, finer and
    finer."""

    def moved(logarithm: float) -> Fit:
        without = law.moved(0.0, math.exp(logarithm))
        return replace(without, offset=-sum(_off(without, rung) for rung in rungs) / len(rungs))

    low, high = math.log(1e-12), math.log(1e12)
    for _ in range(4):
        width = (high - low) / 100
        points = [low + width * number for number in range(101)]
        best = min(points, key=lambda each: _squares(moved(each), rungs))
        low, high = best - width, best + width
    return moved(best)


def key_of(recipe: Recipe) -> str:
    """Names the corpus, the tokenizer and the way of training; models of any size and length of training share it."""
    model = {key: value for key, value in recipe.model.model_dump().items() if key not in SIZES}
    training = {} if recipe.pretrain is None else {
        "optimizer": recipe.pretrain.optimizer.kind,
        "schedule": recipe.pretrain.schedule.kind,
    }  # fmt: skip
    data = {name: value for name, value in recipe.data.model_dump(mode="json").items() if name in OF_THE_CORPUS}
    return digest({"data": data, "tokenizer": recipe.tokenizer.model_dump(), "model": model, "training": training})


def keep_calibration(recipe: Recipe, found: Calibration) -> Path:
    """Writes it where find_calibration looks. Returns the file."""
    path = _path(recipe, found.fit.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    rungs = [asdict(rung) for rung in found.rungs]
    content = {"format_version": 2, "recipe": recipe.name, "bytes_a_token": found.bytes_a_token, "rungs": rungs}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def find_calibration(recipe: Recipe, law: str) -> Calibration | None:
    """The calibration of that law for recipes like this one, if one was ever made.

    Raises:
        UserError: it is damaged.
    """
    path = _path(recipe, law)
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        rungs = [Rung(**rung) for rung in content["rungs"]]
        return Calibration(fit_ladder(FITS[law], tuple(rungs)), rungs, float(content["bytes_a_token"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and calibrate anew") from None


def _path(recipe: Recipe, law: str) -> Path:
    return config_dir() / "calibrations" / f"{key_of(recipe)}-{law}.json"
