"""How far a stage is: all that decides what its next step is, besides weights, optimizer and random states."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """step: updates done. train_seconds: spent on them. skipped: places in the order of the data that are passed over
    (Batches.place). lr_factor: on the schedule's rate. rollbacks: how often an earlier checkpoint was gone back to.
    bad_steps: passed over because their numbers were none, of the steps looked at so far; bad_in_a_row: the last of
    them."""

    step: int = 0
    train_seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)
    lr_factor: float = 1.0
    rollbacks: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """From a checkpoint's state.json, which holds other things too."""
        return cls(**{each.name: state[each.name] for each in fields(cls) if each.name in state})

    def facts(self) -> dict[str, Any]:
        return asdict(self)
