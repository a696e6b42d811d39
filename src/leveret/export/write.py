"""A run's model in transformers' format: config.json, safetensors, tokenizer, generation_config.json.

    RUN --> the shape as keys of transformers --> config.json
        --> weights under transformers' names --> model.safetensors
        --> tokenizer/ as it is ----------------> tokenizer.json, tokenizer_config.json

What is written loads in stock transformers, without code of ours, and in whatever reads its files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from leveret.errors import UserError
from leveret.export.sampling import facts_of_sampling
from leveret.export.shapes import STAGE, facts_of
from leveret.export.source import find_source
from leveret.rundir import write_json
from leveret.training.tensorfile import write_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_model(reference: str, folder: Path, dtype: str = "float32") -> None:
    """Writes RUN, RUN/STAGE or RUN/STAGE@STEP as a new folder; adapters are merged.

    Args:
        dtype: of the weights on disk, a key of DTYPES.

    Raises:
        UserError: there is no such model, transformers has no class for its shape, or there is something in the folder.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"there is something in {folder} already; take another folder")
    source = find_source(reference)
    config, tokenizer = source.config, source.tokenizer
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    facts = facts_of(config) | ids | {"dtype": dtype, STAGE: source.stage}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save(partial, model_max_length=config.max_position_embeddings)
    written = {name: tensor.to(DTYPES[dtype]) for name, tensor in source.weights().items()}
    write_tensors(partial / "model.safetensors", written, {"format": "pt"})
    (partial / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_json(partial / "generation_config.json", ids | facts_of_sampling(source.recipe.generation))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
