"""Leveret raises small language models from nothing.

import leveret
print(leveret.load("runs/quickstart").generate("list all png files in ~/photos"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leveret.api import LoadedModel

__version__ = "0.1.0"


def load(run: str, device: str = "auto") -> LoadedModel:
    """Loads a trained model.

    Args:
        run: a run directory or its name under runs/; a stage and step after it if wished, as in
            ``runs/quickstart/pretrain@500``. Without a stage, the last finished one is meant.
        device: "auto", or a torch device such as "cpu" or "cuda:0".

    Raises:
        UserError: there is no such run, or nothing trained in it.
    """
    from leveret.api import load_model

    return load_model(run, device)
