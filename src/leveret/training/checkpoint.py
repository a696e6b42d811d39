"""Checkpoints: whole or absent, verified by hash, never a pickle.

checkpoints/step-00000500/   model.safetensors      weights under transformers' names
                             optimizer.safetensors  the optimizer's tensors
                             random.safetensors     states of the random generators
                             state.json             step, seconds
                             recipe.yaml            the whole recipe
                             manifest.json          SHA-256 of each of the above
checkpoints/latest           the name of the newest one, moved last
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leveret.data.shards import file_sha256, flush
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.weights import from_disk, to_disk

FORMAT_VERSION = 1
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
        return from_disk(load_file(self.folder / "model.safetensors"), config)

    def optimizer(self) -> dict[str, Tensor]:
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
        manifest = json.loads((self.folder / "manifest.json").read_text())
        return str(manifest["files"]["model.safetensors"])


def save_checkpoint(
    folder: Path, model: Decoder, optimizer_state: dict[str, Tensor], state: dict[str, Any], recipe: str = ""
) -> Checkpoint:
    """Writes folder/step-N under a temporary name, flushes, hashes, renames, then moves `latest`.

    Args:
        recipe: what is trained, as YAML; kept with the weights.
    """
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, model, optimizer_state, state, recipe)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    pointer = folder / ".latest.partial"
    pointer.write_text(final.name + "\n")
    flush(pointer)
    pointer.rename(folder / "latest")
    flush(folder)
    return Checkpoint(final, state)


def _write(
    partial: Path, model: Decoder, optimizer_state: dict[str, Tensor], state: dict[str, Any], recipe: str
) -> None:
    """All files of a checkpoint, flushed to the disk."""
    _save(to_disk(model.state_dict(), model.config), partial / "model.safetensors", {"format": "pt"})
    _save({k: v.contiguous() for k, v in optimizer_state.items()}, partial / "optimizer.safetensors")
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    _save(random, partial / "random.safetensors")
    (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    (partial / "recipe.yaml").write_text(recipe, encoding="utf-8")
    files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in partial.iterdir():
        flush(path)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; a disk that refuses it is an OSError, as everywhere."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


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
        return open_checkpoint(folder / f"step-{step:08d}") if step in steps_on_disk(folder) else None
    for number in reversed(steps_on_disk(folder)):
        try:
            return open_checkpoint(folder / f"step-{number:08d}")
        except UserError as error:
            log.warning("%s; using the one before it", error)
    return None


def prune_checkpoints(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Deletes all but the newest keep_last and the best."""
    for step in steps_on_disk(folder)[:-keep_last]:
        if step != best_step:
            shutil.rmtree(folder / f"step-{step:08d}")
