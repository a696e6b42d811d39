"""What the base model gives every answer: computed once, before the first step, and kept beside the stage.

    windows not done --in order, a share for each rank--> log-probabilities [documents] --now and then--> partial.npy
        --all done--> train.npy, validation.npy --hashed--> manifest.json

They are computed by the code and in the precision that the training computes its own with, so that both round alike and
margins begin at nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leveret.data.batches import Batches
from leveret.data.shards import file_sha256, flush
from leveret.model.decoder import Decoder
from leveret.posttraining.preference import answer_log_probabilities
from leveret.strangers.documents import read_json
from leveret.strangers.files import beside
from leveret.strangers.tensors import checked_array
from leveret.training.parallel import Group
from leveret.training.tensorfile import write_flushed

FORMAT_VERSION = 1
PAUSE = 10.0
"""Seconds of work between two lines of progress; a kill loses no more."""

Known = dict[str, NDArray[np.float32]]
"""For each split the log-probability of every document's answer, in nats."""
Say = Callable[[str], None]


def read_reference(folder: Path, key: dict[str, str]) -> Known | None:
    """What is kept in a folder, if it was made from what `key` says and is whole."""
    try:
        manifest = read_json(folder / "manifest.json")
        made = manifest["format_version"] == FORMAT_VERSION and key.items() <= manifest["key"].items()
        if not made or any(file_sha256(folder / name) != digest for name, digest in manifest["files"].items()):
            return None
        return {
            name.removesuffix(".npy"): np.load(checked_array(beside(folder, name)), allow_pickle=False)
            for name in manifest["files"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def make_reference(
    folder: Path,
    key: dict[str, str],
    model: Decoder,
    splits: dict[str, Batches],
    dtype: torch.dtype,
    group: Group,
    say: Say,
) -> Known:
    """The reference of a stage: read, or computed and kept.

    Args:
        key: what it follows from: the base's weights, the shards, the precision.
        model: the base, on its device.
        splits: the batches of every split, of one process; how they are shared out is decided here.
    """
    kept = read_reference(folder, key)
    if not group.agree(int(kept is None)):
        assert kept is not None
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    made = {
        split: _compute(folder / f".{split}-{name}.npy", model, batches, dtype, group, say)
        for split, batches in splits.items()
    }
    if group.main:
        try:
            _write(folder, key, made)
        except OSError as error:  # a disk that is full stops no training
            say(f"the reference is not kept ({error.strerror}): it will be computed anew when the training goes on")
    return made


def _compute(
    partial: Path, model: Decoder, batches: Batches, dtype: torch.dtype, group: Group, say: Say
) -> NDArray[np.float32]:
    """The log-probabilities of a split's answers, from where an earlier start was stopped."""
    known = _begun(partial, len(batches.split.starts))
    windows, rows = len(batches.split.windows), batches.batch_size
    row, _, number = batches.documents_of(np.arange(windows))
    undone = row[np.isnan(known[number])]
    first = -group.agree(-int(undone.min(initial=windows)))
    was_training, device, told = model.training, model.embed_tokens.weight.device, time.monotonic()
    model.eval()
    for start in range(first, windows, rows * group.ranks):
        group.at("the reference", long=True)
        ours = np.arange(start, min(start + rows * group.ranks, windows))
        share = slice(group.rank * rows, (group.rank + 1) * rows)
        batch = batches.of_windows(ours[share], rows).counted().to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            summed, _ = answer_log_probabilities(model, batch, batches.most_documents)
        every = torch.zeros(group.ranks * rows, batches.most_documents, device=device)
        every[share] = summed.float()
        row, column, number = batches.documents_of(ours)
        known[number] = group.sum(every).cpu().numpy()[row, column]
        if group.main and time.monotonic() - told > PAUSE:
            told = time.monotonic()
            say(f"the base model's log-probabilities: {ours[-1] + 1:,} of {windows:,} rows")
            _keep(partial, known)
    model.train(was_training)
    return known


def _begun(partial: Path, documents: int) -> NDArray[np.float32]:
    """What an earlier start has left; NaN where nothing is known yet."""
    try:
        found: NDArray[np.float32] = np.load(checked_array(partial), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = np.empty(0, dtype=np.float32)
    return found if found.shape == (documents,) else np.full(documents, np.nan, dtype=np.float32)


def _keep(path: Path, known: NDArray[np.float32]) -> None:
    """Saves what is known so far; where the disk refuses, the next time."""
    fresh = path.with_suffix(".new.npy")
    try:
        np.save(fresh, known, allow_pickle=False)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)


def _write(folder: Path, key: dict[str, str], made: Known) -> None:
    """Puts the files in place, the manifest last. Raises OSError where the disk refuses."""
    files = {}
    for split, known in made.items():
        part = folder / f".{split}.npy"
        np.save(part, known, allow_pickle=False)
        flush(part)
        files[f"{split}.npy"] = file_sha256(part)
        part.replace(folder / f"{split}.npy")
    manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "key": key, "files": files}
    part = folder / ".manifest.json"
    write_flushed(part, [json.dumps(manifest, indent=2).encode() + b"\n"])
    part.replace(folder / "manifest.json")
    flush(folder)
    for left in folder.glob(".*.npy"):
        left.unlink()
