"""Leveret raises small language models from nothing.

import leveret
print(leveret.load("runs/quickstart").generate("list all png files in ~/photos"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leveret.api import LoadedModel

__version__ = "0.1.0"


def load(
    model: str,
    device: str = "auto",
    dtype: str | None = None,
    quantize: str | None = None,
    backend: str | None = None,
) -> LoadedModel:
    """Loads a trained model.

    Args:
        model: a run directory or its name under runs/; a stage and step after it if wished, as in
            ``runs/quickstart/pretrain@500``. Without a stage, the last finished one is meant. Or a folder in
            transformers' format, ours or others'; or a GGUF file that ``leveret export gguf`` wrote.
        device: "auto", or a torch device such as "cpu" or "cuda:0".
        dtype: of the weights, "float32" or "bfloat16"; None: as they are.
        quantize: "int8" or "int4" packs the matrices.
        backend: "leveret", or "llamacpp" for GGUF files; None: what reads it.

    Raises:
        UserError: there is no such model, nothing trained in the run, or an option is not for it.
    """
    from leveret.api import load_model

    return load_model(model, device, dtype, quantize, backend)
