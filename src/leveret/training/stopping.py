"""Early stopping: when a stage ends because its held-out loss gets no better."""

from __future__ import annotations

import math
from collections.abc import Mapping


def worn_out(losses: Mapping[int, float], patience: int) -> bool:
    """Whether the last `patience` validations were none of them better than the best before them.

    Args:
        losses: validation losses by step; what is no number is no better than anything.
    """
    if not losses:
        return False
    known = {step: loss if math.isfinite(loss) else math.inf for step, loss in sorted(losses.items())}
    best = min(known, key=known.__getitem__)
    return sum(step > best for step in known) >= patience
