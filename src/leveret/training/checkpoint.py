"""Checkpoints: whole or absent, verified by hash, never a pickle.

checkpoints/step-00000500/   model.safetensors      weights under transformers' names
                             optimizer.safetensors  the optimizer's tensors
                             shard-*.safetensors    or, of a model that ranks share, parts of both (sharded.py)
                             random.safetensors     states of the random generators
                             state.json             step, seconds
                             recipe.yaml            the whole recipe
                             manifest.json          SHA-256 of each of the above
checkpoints/latest           the name of the newest one, moved last
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from leveret.data.shards import file_sha256, flush
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.weights import from_disk, tied, to_disk
from leveret.training.sharded import SHARDS, read_shards
from leveret.training.tensorfile import write_flushed, write_tensors

FORMAT_VERSION = 1
MARGIN = 2**20
"""Bytes of a checkpoint beside its tensors, amply."""
POINTER = ".latest.partial"
log = logging.getLogger("leveret")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def weights(self, config: ModelConfig) -> dict[str, Tensor]:
        """The decoder's state in memory's form."""
        if self.sharded:
            return tied(read_shards(self.folder, "model"), config)
        return from_disk(load_file(self.folder / "model.safetensors"), config)

    @property
    def sharded(self) -> bool:
        """Whether it is in the parts that ranks have written."""
        return not (self.folder / "model.safetensors").exists()

    def optimizer(self) -> dict[str, Tensor]:
        if self.sharded:
            return read_shards(self.folder, "optimizer")
        return load_file(self.folder / "optimizer.safetensors")

    def restore_random(self) -> None:
        """Puts the random generators where they were."""
        states = load_file(self.folder / "random.safetensors")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])

    @property
    def weights_sha256(self) -> str:
        """The hash that names these weights."""
        files = json.loads((self.folder / "manifest.json").read_text())["files"]
        if not self.sharded:
            return str(files["model.safetensors"])
        return sha256(json.dumps([files[name] for name in sorted(files) if fnmatch(name, SHARDS)]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint is made of.

    weights: the decoder's state in memory's form. recipe: what is trained, as YAML; kept with the weights. shards: a
    folder beside the checkpoints where ranks have written weights and optimizer, which then are empty here.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    state: dict[str, Any]
    recipe: str = ""
    shards: Path | None = None

    @classmethod
    def of(
        cls, model: Decoder, optimizer_state: dict[str, Tensor], state: dict[str, Any], recipe: str = ""
    ) -> Snapshot:
        """How things stand. The tensors are the model's and the optimizer's own, not copies."""
        weights = model.state_dict()
        if model.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        return cls(model.config, weights, optimizer_state, random, state, recipe)

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def nbytes(self) -> int:
        """About what it takes on the disk."""
        return MARGIN + sum(tensor.nbytes for tensor in (*self.weights.values(), *self.optimizer.values()))


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Checkpoint:
    """Writes folder/step-N under a temporary name, flushes, renames, then moves `latest`. Its tensors are on the CPU.

    Raises:
        OSError: the disk refuses. The checkpoints that were there are whole, and nothing of this one is left.
    """
    final = folder / _name(snapshot.step)
    partial, replaced = folder / f".{final.name}.partial", folder / f".{final.name}.replaced"
    shutil.rmtree(partial, ignore_errors=True)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush(folder.parent)
    try:
        partial.mkdir()
        _write(partial, snapshot)
        flush(partial)
        if final.exists():
            final.rename(replaced)  # if a kill comes here, `tidy` puts it back
        partial.rename(final)
        flush(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _put_back(replaced)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    pointer = folder / POINTER
    write_flushed(pointer, [f"{final.name}\n".encode()])
    pointer.rename(folder / "latest")
    flush(folder)
    return Checkpoint(final, snapshot.state)


def _write(partial: Path, snapshot: Snapshot) -> None:
    """All files of a checkpoint, flushed to the disk; the manifest last."""
    if snapshot.shards is not None:
        files = {path.name: file_sha256(path.rename(partial / path.name)) for path in snapshot.shards.glob(SHARDS)}
        if not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(snapshot.shards))
    else:
        weights = to_disk(snapshot.weights, snapshot.config)
        files = {
            "model.safetensors": write_tensors(partial / "model.safetensors", weights, {"format": "pt"}),
            "optimizer.safetensors": write_tensors(partial / "optimizer.safetensors", snapshot.optimizer),
        }
    files |= {
        "random.safetensors": write_tensors(partial / "random.safetensors", snapshot.random),
        "state.json": write_flushed(partial / "state.json", [_json(snapshot.state)]),
        "recipe.yaml": write_flushed(partial / "recipe.yaml", [snapshot.recipe.encode()]),
    }
    write_flushed(partial / "manifest.json", [_json({"format_version": FORMAT_VERSION, "files": files})])


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def tidy(folder: Path) -> None:
    """Takes away what a save or a removal that was killed has left half done. For the one process that writes here."""
    for path in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.removed")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.replaced"):
        _put_back(path)
    (folder / POINTER).unlink(missing_ok=True)


def _put_back(replaced: Path) -> None:
    """A checkpoint that had to make room for one of the same step, if that one has not come; else it is not needed."""
    final = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
    if replaced.exists() and not final.exists():
        replaced.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies one checkpoint.

    Raises:
        UserError: it is not whole.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format_version"] != FORMAT_VERSION:
            raise ValueError("it is of another format version")
        wrong = [name for name, digest in manifest["files"].items() if file_sha256(folder / name) != digest]
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is not whole ({error})") from None
    if wrong:
        raise UserError(f"checkpoint {folder} is damaged: {', '.join(wrong)} differs from its hash")
    return Checkpoint(folder, state)


def steps_on_disk(folder: Path) -> list[int]:
    names = [path.name for path in folder.glob("step-" + "[0-9]" * 8) if path.is_dir()]
    return sorted(int(name.removeprefix("step-")) for name in names)


def find_checkpoint(folder: Path, step: int | None = None) -> Checkpoint | None:
    """The checkpoint of a step, or the newest whole one: what does not verify is skipped with a warning."""
    if step is not None:
        return open_checkpoint(folder / _name(step)) if step in steps_on_disk(folder) else None
    for number in reversed(steps_on_disk(folder)):
        try:
            return open_checkpoint(folder / _name(number))
        except UserError as error:
            log.warning("%s; using the one before it", error)
    return None


def prune(folder: Path, newest: int, keep_last: int, losses: Mapping[int, float]) -> None:
    """Deletes all but the newest keep_last and the best, and what is later than the newest: a run that has gone back
    to an earlier one, as later ones were damaged or led nowhere, will not go that way again.

    Args:
        newest: the step that was saved last.
        losses: validation losses by step; the best checkpoint is the one with the lowest.
    """
    steps = steps_on_disk(folder)
    past = [step for step in steps if step <= newest]
    measured = [step for step in past if math.isfinite(losses.get(step, math.nan))]
    kept = {*past[-keep_last:], *sorted(measured, key=losses.__getitem__)[:1]}
    for step in steps:
        if step not in kept:
            path = folder / _name(step)
            removed = path.rename(folder / f".{path.name}.removed")  # in one move, so that none is ever half there
            shutil.rmtree(removed)


def _name(step: int) -> str:
    return f"step-{step:08d}"
