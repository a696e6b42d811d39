"""Checkpoints: whole or absent, verified by hash, never a pickle.

checkpoints/step-00000500/   model.safetensors      weights under transformers' names
                             optimizer.safetensors  the optimizer's tensors
                             adapter_*              with LoRA: the adapters in peft's format; the weights are the frozen
                                                    ones, one file for all checkpoints where the disk knows links
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
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from leveret.data.shards import file_sha256, flush
from leveret.errors import UserError
from leveret.model.config import LoraConfig, ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import from_peft, lora_of_peft, merge, peft_config, split_state, to_peft
from leveret.model.weights import from_disk, tied, to_disk
from leveret.strangers.documents import read_json
from leveret.strangers.files import beside
from leveret.strangers.tensors import checked_tensors
from leveret.training.sharded import SHARDS, read_shards
from leveret.training.tensorfile import write_flushed, write_tensors

FORMAT_VERSION = 1
MARGIN = 2**20
"""Bytes of a checkpoint beside its tensors, amply."""
POINTER = ".latest.partial"
MODEL, ADAPTERS, ADAPTER_CONFIG = "model.safetensors", "adapter_model.safetensors", "adapter_config.json"
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
        """The decoder's state in memory's form; adapters are merged into it."""
        if self.sharded:
            return tied(read_shards(self.folder, "model"), config)
        weights = from_disk(load_file(checked_tensors(self.folder / MODEL)), config)
        if not self.has_adapters:
            return weights
        return merge(weights, *self._adapters(config))

    def unmerged(self, config: ModelConfig) -> dict[str, Tensor]:
        """The same as training holds it: frozen weights, and the adapters beside them."""
        if not self.has_adapters:
            return self.weights(config)
        return from_disk(load_file(checked_tensors(self.folder / MODEL)), config) | self._adapters(config)[0]

    def _adapters(self, config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig, LoraConfig]:
        lora = lora_of_peft(read_json(self.folder / ADAPTER_CONFIG), config)
        return from_peft(load_file(checked_tensors(self.folder / ADAPTERS)), config, lora), config, lora

    @property
    def has_adapters(self) -> bool:
        return (self.folder / ADAPTERS).exists()

    @property
    def sharded(self) -> bool:
        """Whether it is in the parts that ranks have written."""
        return not (self.folder / MODEL).exists()

    def optimizer(self) -> dict[str, Tensor]:
        if self.sharded:
            return read_shards(self.folder, "optimizer")
        return load_file(checked_tensors(self.folder / "optimizer.safetensors"))

    def restore_random(self) -> None:
        """Puts the random generators where they were."""
        states = load_file(checked_tensors(self.folder / "random.safetensors"))
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])

    @property
    def weights_sha256(self) -> str:
        """The hash that names these weights."""
        files = read_json(self.folder / "manifest.json")["files"]
        if not self.sharded and not self.has_adapters:
            return str(files[MODEL])
        parts = (MODEL, ADAPTERS, ADAPTER_CONFIG, SHARDS)
        named = [files[name] for name in sorted(files) if any(fnmatch(name, part) for part in parts)]
        return sha256(json.dumps(named).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint is made of.

    weights: the decoder's state in memory's form. recipe: what is trained, as YAML; kept with the weights. shards: a
    folder beside the checkpoints where ranks have written weights and optimizer, which then are empty here. adapters,
    lora: what is learnt beside frozen weights, if it is that.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    state: dict[str, Any]
    recipe: str = ""
    shards: Path | None = None
    adapters: dict[str, Tensor] = field(default_factory=dict)
    lora: LoraConfig | None = None

    @classmethod
    def of(
        cls, model: Decoder, optimizer_state: dict[str, Tensor], state: dict[str, Any], recipe: str = ""
    ) -> Snapshot:
        """How things stand. The tensors are the model's and the optimizer's own, not copies."""
        weights, adapters = split_state(model.state_dict())
        if model.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        return cls(model.config, weights, optimizer_state, random, state, recipe, None, adapters, model.lora)

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def nbytes(self) -> int:
        """About what it takes on the disk."""
        every = (*self.weights.values(), *self.optimizer.values(), *self.adapters.values())
        return MARGIN + sum(tensor.nbytes for tensor in every)


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
    _point(folder, final.name)
    return Checkpoint(final, snapshot.state)


def _point(folder: Path, name: str) -> None:
    """Moves `latest`."""
    pointer = folder / POINTER
    write_flushed(pointer, [f"{name}\n".encode()])
    pointer.rename(folder / "latest")
    flush(folder)


def _write(partial: Path, snapshot: Snapshot) -> None:
    """All files of a checkpoint, flushed to the disk; the manifest last."""
    if snapshot.shards is not None:
        files = {path.name: file_sha256(path.rename(partial / path.name)) for path in snapshot.shards.glob(SHARDS)}
        if not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(snapshot.shards))
    else:
        files = _write_weights(partial, snapshot)
        files["optimizer.safetensors"] = write_tensors(partial / "optimizer.safetensors", snapshot.optimizer)
    files |= {
        "random.safetensors": write_tensors(partial / "random.safetensors", snapshot.random),
        "state.json": write_flushed(partial / "state.json", [_json(snapshot.state)]),
        "recipe.yaml": write_flushed(partial / "recipe.yaml", [snapshot.recipe.encode()]),
    }
    write_flushed(partial / "manifest.json", [_json({"format_version": FORMAT_VERSION, "files": files})])


def _write_weights(partial: Path, snapshot: Snapshot) -> dict[str, str]:
    """The weights; or the adapters, and the frozen weights once for all checkpoints. Each file's SHA-256."""
    config, lora, files = snapshot.config, snapshot.lora, dict[str, str]()
    if lora is not None:
        adapters, described = to_peft(snapshot.adapters, config, lora), _json(peft_config(config, lora))
        files[ADAPTERS] = write_tensors(partial / ADAPTERS, adapters, {"format": "pt"})
        files[ADAPTER_CONFIG] = write_flushed(partial / ADAPTER_CONFIG, [described])
        if digest := _link_frozen(partial):
            return files | {MODEL: digest}
    weights = to_disk(snapshot.weights, config)
    return files | {MODEL: write_tensors(partial / MODEL, weights, {"format": "pt"})}


def _link_frozen(partial: Path) -> str | None:
    """Takes the frozen weights of an earlier checkpoint of the stage, if they are whole. Returns their SHA-256; None
    where there are none, or the disk knows no links."""
    for step in reversed(steps_on_disk(partial.parent)):
        before = partial.parent / _name(step)
        try:
            digest = str(read_json(before / "manifest.json")["files"][MODEL])
            if (before / ADAPTERS).exists() and file_sha256(before / MODEL) == digest:
                (partial / MODEL).hardlink_to(before / MODEL)
                return digest
        except (OSError, ValueError, KeyError):
            continue
    return None


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
        manifest = read_json(folder / "manifest.json")
        if manifest["format_version"] != FORMAT_VERSION:
            raise ValueError("it is of another format version")
        wrong = [name for name, digest in manifest["files"].items() if file_sha256(beside(folder, name)) != digest]
        state = read_json(folder / "state.json")
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
    kept = {*past[-keep_last:], *_best_first(past, losses)[:1]}
    for step in steps:
        if step not in kept:
            _remove(folder, step)


def go_back_to_best(folder: Path, losses: Mapping[int, float]) -> int | None:
    """Makes the best validated checkpoint that is whole the newest, by deleting those after it, the newest last: where
    this is cut short, training that goes on ends at once and does it again.

    Returns:
        its step; None if there is none, and then nothing changes.
    """
    steps = steps_on_disk(folder)
    for best in _best_first(steps, losses):
        try:
            open_checkpoint(folder / _name(best))
        except UserError as error:
            log.warning("%s; using the next best", error)
            continue
        _point(folder, _name(best))
        for step in steps:
            if step > best:
                _remove(folder, step)
        return best
    return None


def _best_first(steps: list[int], losses: Mapping[int, float]) -> list[int]:
    """Those that have a validation loss, the lowest first; of equal ones the earlier."""
    measured = [step for step in steps if math.isfinite(losses.get(step, math.nan))]
    return sorted(measured, key=losses.__getitem__)


def _remove(folder: Path, step: int) -> None:
    path = folder / _name(step)
    removed = path.rename(folder / f".{path.name}.removed")  # in one move, so that none is ever half there
    shutil.rmtree(removed)


def _name(step: int) -> str:
    return f"step-{step:08d}"
