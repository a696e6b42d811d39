"""What may change in the recipe of a training that has begun: accepted or refused by rule, each key named.

What changes no weight, and what changes a step in its last bits only, is accepted; so is another length, where every
step so far would have had the same learning rate. Anything else would be another training: one that is finished is set
aside and made again, one on its way is not thrown away without being told to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leveret.errors import Refused
from leveret.recipe import Recipe, digest
from leveret.strangers.documents import read_yaml
from leveret.training.config import TrainingConfig
from leveret.training.schedule import learning_rate

HARMLESS = {"log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_last", "price", "trackers", "guard"}
"""Keys of training that change no weight; the guard's change none as long as nothing goes wrong."""
LAST_BITS = {"micro_batch_size", "compile", "loss_kernel", "gradient_checkpointing", "deterministic", "parallel"}
"""Keys that cut or compute the same steps otherwise."""
LENGTH = {"steps", "tokens", "epochs", "patience"}
"""Keys that say how long training is."""

CONTENT = {"examples"}
"""Keys that name files, whose content is compared and not their names."""

Change = tuple[str, Any, Any]


def training_id(config: TrainingConfig) -> str:
    """A digest of the keys that decide the weights."""
    kept = config.model_dump(mode="json", exclude=HARMLESS | LAST_BITS)
    return digest(kept)


def changes(before: Any, after: Any, key: str = "") -> list[Change]:
    """The keys, dotted, whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        inner = (changes(before.get(each), after.get(each), f"{key}.{each}".lstrip(".")) for each in keys)
        return [change for some in inner for change in some]
    return [] if before == after else [(key, before, after)]


def _key(change: Change, stage: str) -> str:
    """The key of the stage's config that a change is in; of another part's, the whole of its name."""
    name = change[0].removeprefix(f"{stage}.")
    return name if name == change[0] else name.partition(".")[0]


def told(found: list[Change]) -> str:
    """ "pretrain.seed 0 -> 1, model.qk_norm False -> True" """
    return ", ".join(f"{key} {before} -> {after}" for key, before, after in found)


def of_training(folder: Path, stage: str, recipe: Recipe) -> tuple[int, TrainingConfig | None, list[Change]] | None:
    """The newest checkpoint's step, its training config (None: unreadable now), and what decides weights and differs.

    None where there is no checkpoint.
    """
    from leveret.training.checkpoint import find_checkpoint

    found = find_checkpoint(folder / "checkpoints")
    if found is None:
        return None
    old = read_yaml(found.folder / "recipe.yaml") or {}
    new = recipe.model_dump(mode="json")
    differ = [
        change
        for part in ("model", stage)
        for change in changes(old.get(part), new.get(part), part)
        if _key(change, stage) not in HARMLESS | CONTENT
    ]
    try:
        config = type(getattr(recipe, stage)).model_validate(old.get(stage))
    except ValidationError:
        config = None
    return found.step, config, differ


def may_go_on(
    folder: Path, stage: str, recipe: Recipe, finished: bool, stale: str, steps_of: Callable[[TrainingConfig], int]
) -> tuple[bool, str]:
    """Whether a stage that has begun goes on with this recipe (else it is made again), and what to say of it.

    Args:
        recipe: with absolute paths, as runs keep it.
        stale: which of the things that decide its weights have changed, in a few words; empty if none has.
        steps_of: the length of a training of that config, in steps.

    Raises:
        Refused: it is on its way, and would be another training.
    """
    known = of_training(folder, stage, recipe)
    if known is None:
        return not stale, ""
    step, before, differ = known
    if not stale:
        return True, f"goes on with {told(differ)}" if differ else ""
    real = [change for change in differ if _key(change, stage) not in LAST_BITS]
    reason = told(real) or stale
    if before is not None and real and {_key(change, stage) for change in real} <= LENGTH:
        after: TrainingConfig = getattr(recipe, stage)
        steps = steps_of(before), steps_of(after)
        if (other := _first_other_rate(before, after, *steps, step)) is None:
            return True, f"goes on from step {step} of {steps[0]} to {steps[1]}: {reason}"
        reason += f", with which step {other} would have had another learning rate"
    if finished:
        return False, reason if real else ""
    raise Refused(
        f"{folder} is at step {step} of another training: {reason}; take the old values, or another --run-dir, or move "
        f"{folder} away to begin anew"
    )


def _first_other_rate(
    before: TrainingConfig, after: TrainingConfig, old_steps: int, new_steps: int, done: int
) -> int | None:
    """The first of the steps done, counted from 1, that would have another learning rate now, or would not be."""
    for step in range(done):
        rates = (
            learning_rate(each.schedule, each.optimizer.lr, step, steps)
            for each, steps in ((before, old_steps), (after, new_steps))
        )
        if step >= new_steps or len(set(rates)) > 1:
            return step + 1
    return None
