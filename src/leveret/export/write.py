"""A run's model in transformers' format: config.json, safetensors, tokenizer, generation_config.json.

    RUN --> the shape as keys of transformers --> config.json, and modeling_leveret.py where transformers has no class
        --> weights under transformers' names --> model.safetensors, or pieces of it and their index
        --> tokenizer/ as it is ----------------> tokenizer.json, tokenizer_config.json
        --> what the run knows of the model ----> README.md, the model card, and pictures of its loss

Shapes that transformers has a class for load in it without code of ours, and in whatever reads its files. The others
bring a short modelling file, which we ourselves do not need to read them back.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.export.card import write_card
from leveret.export.sampling import facts_of_sampling
from leveret.export.shapes import OWN, STAGE, facts_for_transformers
from leveret.export.source import find_source
from leveret.rundir import write_json
from leveret.training.tensorfile import write_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELLING = Path(__file__).with_name("modeling_leveret.py")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
SHARD_SIZE = "5GB"
"""Of a file of weights, at most; the Hub and most disks are at ease with it."""


def export_model(
    reference: str,
    folder: Path,
    dtype: str = "float32",
    max_shard_size: str = SHARD_SIZE,
    name: str | None = None,
    licence: str | None = None,
) -> bool:
    """Writes RUN, RUN/STAGE or RUN/STAGE@STEP as a new folder; adapters are merged.

    Args:
        dtype: of the weights on disk, a key of DTYPES.
        max_shard_size: of a file of weights, such as 500MB; a tensor that is larger has a file of its own.
        name: by which the card loads the model. None: the folder's.
        licence: of the weights, as the Hub names it, for the card.

    Returns:
        Whether transformers needs our modelling file to load it.

    Raises:
        UserError: there is no such model, or there is something in the folder.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    folder = folder.resolve()  # "." has no name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"there is something in {folder} already; take another folder")
    limit = _bytes(max_shard_size)
    source = find_source(reference)
    config, tokenizer = source.config, source.tokenizer
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    shape = facts_for_transformers(config)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save(partial, model_max_length=config.max_position_embeddings)
    # Of a model of others nothing was done here by which to know whether it chats: its template says so, as before.
    stage = {} if source.stage == "pretrain" and source.chats else {STAGE: source.stage}
    weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in source.weights().items()}
    write_weights(partial, weights, limit)
    _write(partial / "config.json", shape | ids | {"dtype": dtype} | stage)
    sampling = facts_of_sampling(source.recipe.generation, config.max_position_embeddings)
    write_json(partial / "generation_config.json", ids | sampling)
    remote: bool = shape["architectures"] == [OWN]
    if remote:
        shutil.copyfile(MODELLING, partial / MODELLING.name)
    write_card(source, partial, name or folder.name, licence)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return remote


def write_weights(folder: Path, weights: Mapping[str, Tensor], limit: int) -> None:
    """Writes one safetensors file, or several of at most `limit` bytes of tensors and an index of them."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in weights.items():
        if tensor.nbytes > room and pieces[-1]:
            pieces.append({})
            room = limit
        pieces[-1][name] = tensor
        room -= tensor.nbytes
    if len(pieces) == 1:
        write_tensors(folder / "model.safetensors", pieces[0], {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, piece in enumerate(pieces, 1):
        file = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        write_tensors(folder / file, piece, {"format": "pt"})
        places |= dict.fromkeys(piece, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _bytes(size: str) -> int:
    found = re.fullmatch(r"([0-9]+)\s*(KB|MB|GB)", size.strip().upper())
    if found is None or int(found[1]) == 0:
        raise UserError(f"--max-shard-size {size} is no size; write it as 500MB or 5GB")
    return int(found[1]) * UNITS[found[2]]


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
