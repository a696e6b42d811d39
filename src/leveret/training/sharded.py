"""Tensors of which every rank holds a share, and checkpoints of them, in safetensors alone.

    step-00000500/shard-00001-model-00001-of-00001.safetensors    rank 0's part of weights and optimizer
                  shard-00002-...                                 rank 1's; what all have alike is in one of them

Written and read by torch.distributed.checkpoint through its Hugging Face storage, which keeps each part's place in the
file's header: so there is no metadata file, which would be a pickle. Names are memory's, "model/NAME" and
"optimizer/NAME/KEY". Any number of ranks reads what any other has written, one alone too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leveret.model.decoder import Decoder, hollow_decoder
from leveret.strangers.tensors import checked_tensors

SHARDS = "shard-*.safetensors"


def whole(tensor: Tensor) -> Tensor:
    """The whole of it, gathered from all ranks where they hold a share each: then all must call this together."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(value: Tensor, held: Tensor) -> Tensor:
    """This rank's share of a value that all have whole, on the device and cut as `held` is; where that is whole, or of
    another shape, the value on that device."""
    value = value.to(held.device)
    if not _is_shared(held) or value.shape != held.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, held.device_mesh, held.placements, src_data_rank=None)  # type: ignore[attr-defined]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """model.load_state_dict of whole tensors, of which a rank takes its share."""
    held = model.state_dict()
    if is_sharded(held.values()):
        weights = {name: spread_like(value, held[name]) for name, value in weights.items()}
    model.load_state_dict(weights)


def gathered(model: Decoder) -> Decoder:
    """The model, or where ranks hold a share of it each, another one with all of it; all call this together."""
    held = model.state_dict()
    if not is_sharded(held.values()):
        return model
    found = hollow_decoder(model.config)
    found.load_state_dict({name: whole(tensor) for name, tensor in held.items()}, assign=True)
    return found.to(next(model.parameters()).device)


def _is_shared(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Their module takes half a second to import, and runs on one device need none of it."""
    return hasattr(tensor, "device_mesh")


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    return any(_is_shared(tensor) for tensor in tensors)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every rank writes its share; all must call this together, with the same names.

    Raises:
        OSError: the disk refuses one of them; all are told.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _quiet():
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        refused = [failure for failure, _ in error.failures.values() if isinstance(failure, OSError)]
        if not refused:
            raise
        raise OSError(refused[0].errno, refused[0].strerror, str(folder)) from error


def read_shards(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part, "model" or "optimizer", whole, on the CPU."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    for path in folder.glob("*.safetensors"):
        checked_tensors(path)
    known: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found = {
        name: torch.empty(facts.size, dtype=facts.properties.dtype)
        for name, facts in known.items()
        if name.startswith(f"{part}/")
    }
    with _quiet():
        load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name.partition("/")[2]: tensor for name, tensor in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks that one process reads alone, or that an API may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
