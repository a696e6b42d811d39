"""Token shards: what tokenising leaves behind, and what training reads.

    documents --split by hash--> ShardWriter --> train-00000.npy ... + starts, windows --> manifest.json
    manifest.json --> TokenStore (memory-mapped) --> batches.py

A split is one long array of token ids cut into shards. Beside it lie the start of every document and the windows
that training reads, each [start, length]; for fine-tuning also a mask of the tokens to learn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leveret.data.windows import IntArray, Windows
from leveret.errors import UserError
from leveret.strangers.documents import read_json
from leveret.strangers.files import beside
from leveret.strangers.tensors import checked_array

FORMAT_VERSION = 1


def is_validation(text: str, fraction: float) -> bool:
    """The side of a document: a hash of its text, so that equal texts are on the same side everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") < fraction * 2**64


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """uint16 where every id fits, else uint32."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Makes sure that a file or a folder's names are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass
class _Split:
    """What is known of a split while it is written."""

    buffer: list[NDArray[Any]] = field(default_factory=list)
    learn: list[NDArray[np.bool_]] = field(default_factory=list)
    buffered: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    starts: list[IntArray] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, int]] = field(default_factory=list)


class ShardWriter:
    """Writes splits of tokens into a folder that appears under its name only when it is whole.

    Args:
        folder: where the shards will be; must not exist.
        vocab_size: decides the dtype.
        shard_tokens: tokens of a shard, but the last.
        masked: whether every document brings a mask of the tokens to learn.
    """

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int, *, masked: bool = False) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self.dtype = token_dtype(vocab_size)
        self.shard_tokens = shard_tokens
        self.masked = masked
        self.splits: dict[str, _Split] = {}
        self.vocab_size = vocab_size

    def add(self, split: str, ids: Sequence[int], text_bytes: int, learn: Sequence[bool] | None = None) -> None:
        """Appends one document."""
        assert max(ids, default=0) < self.vocab_size
        lengths = np.asarray([len(ids)], dtype=np.int64)
        mask = None if learn is None else np.asarray(learn, dtype=np.bool_)
        self.extend(split, np.asarray(ids, dtype=self.dtype), lengths, text_bytes, mask)

    def extend(
        self,
        split: str,
        tokens: NDArray[Any],
        lengths: IntArray,
        text_bytes: int,
        learn: NDArray[np.bool_] | None = None,
        source: int = 0,
    ) -> None:
        """Appends documents of one source, laid end to end; sources come one after the other."""
        assert (learn is not None) == self.masked
        assert len(tokens) == lengths.sum()
        state = self.splits.setdefault(split, _Split())
        if not state.sources or state.sources[-1]["source"] != source:
            state.sources.append({"source": source, "documents": 0, "tokens": 0, "text_bytes": 0})
        state.sources[-1]["documents"] += len(lengths)
        state.sources[-1]["tokens"] += len(tokens)
        state.sources[-1]["text_bytes"] += text_bytes
        state.starts.append(state.tokens + np.cumsum(lengths) - lengths)
        state.documents += len(lengths)
        state.tokens += len(tokens)
        state.text_bytes += text_bytes
        state.buffer.append(tokens)
        if learn is not None:
            state.learn.append(learn)
        state.buffered += len(tokens)
        while state.buffered >= self.shard_tokens:
            self._flush(split, self.shard_tokens)

    def starts(self, split: str) -> IntArray:
        """Where each document of a split begins."""
        return np.concatenate(self.splits[split].starts)

    def _flush(self, split: str, count: int) -> None:
        """Writes the first count buffered tokens as a shard."""
        state = self.splits[split]
        number = len(state.shards)
        tokens = np.concatenate(state.buffer)
        entry = self._save(f"{split}-{number:05d}.npy", tokens[:count])
        state.buffer = [tokens[count:]]
        if self.masked:
            learn = np.concatenate(state.learn)
            entry["mask"] = self._save(f"{split}-{number:05d}.learn.npy", learn[:count])
            state.learn = [learn[count:]]
        state.buffered -= count
        state.shards.append({**entry, "tokens": count})

    def _save(self, name: str, array: NDArray[Any]) -> dict[str, Any]:
        path = self.partial / name
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error  # numpy's short write
        return {"name": name, "sha256": file_sha256(path)}

    def finish(self, windows: dict[str, Windows], facts: dict[str, Any]) -> None:
        """Writes the rest, the indexes and the manifest, and gives the folder its name.

        Args:
            windows: of every split.
            facts: what else the manifest says (tokenizer hash, sources, ...).
        """
        splits: dict[str, Any] = {}
        for name, state in self.splits.items():
            if state.buffered:
                self._flush(name, state.buffered)
            splits[name] = {
                "documents": state.documents,
                "tokens": state.tokens,
                "text_bytes": state.text_bytes,
                "sources": state.sources,
                "shards": state.shards,
                "starts": self._save(f"{name}-starts.npy", self.starts(name)),
                "windows": self._save(f"{name}-windows.npy", windows[name].pieces) | {"count": len(windows[name])},
            }
            if (offsets := windows[name].offsets) is not None:
                splits[name]["offsets"] = self._save(f"{name}-offsets.npy", offsets)
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": np.dtype(self.dtype).name,
            "vocab_size": self.vocab_size,
            **facts,
            "splits": splits,
        }
        manifest["manifest_sha256"] = _manifest_sha256(manifest)
        (self.partial / "manifest.json").write_text(_as_json(manifest) + "\n", "utf-8")
        for path in self.partial.iterdir():
            flush(path)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.partial.rename(self.folder)
        flush(self.folder.parent)


def _as_json(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False)


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    """The hash of a manifest but for this hash."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(_as_json(rest).encode()).hexdigest()


class TokenStore:
    """Shards read back, memory-mapped.

    Raises:
        UserError: the folder is not a whole set of shards, or belongs to another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer_hash: str | None = None) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
            known = self.manifest.get("format_version") == FORMAT_VERSION
            entries = list(_entries(self.manifest)) if known else []
            self._hashes = {beside(folder, entry["name"]).name: entry["sha256"] for entry in entries}
        except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
            raise UserError(f"{folder} holds no readable manifest.json ({error}); prepare the data again") from None
        if not known:
            raise UserError(f"{folder} has shards of another format version; prepare the data again")
        found = self.manifest.get("tokenizer")
        if tokenizer_hash is not None and found != tokenizer_hash:
            raise UserError(
                f"the shards in {folder} were made with another tokenizer ({str(found)[:12]}, "
                f"not {tokenizer_hash[:12]}); prepare the data again"
            )

    def split(self, name: str) -> TokenSplit:
        if name not in self.manifest["splits"]:
            raise UserError(f"{self.folder} has no {name} split; it has {', '.join(self.manifest['splits'])}")
        return TokenSplit(self.folder, self.manifest["splits"][name])

    def verify(self) -> list[str]:
        """The files whose content is not what the manifest says; the manifest itself, where its own hash differs."""
        paths = {name: self.folder / name for name in self._hashes}
        wrong = [n for n, path in paths.items() if not path.is_file() or file_sha256(path) != self._hashes[n]]
        *_, (last, value) = self.manifest.items()
        changed = last != "splits" and value != _manifest_sha256(self.manifest)  # older manifests have no hash
        return wrong + ["manifest.json"] * changed


def _entries(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a manifest says of each file."""
    if "references" in manifest:
        yield manifest["references"]
    for split in manifest["splits"].values():
        yield from (split[key] for key in ("starts", "windows", "offsets") if key in split)
        for shard in split["shards"]:
            yield shard
            if "mask" in shard:
                yield shard["mask"]


class TokenSplit:
    """One split: its shards as one array, its documents, its windows.

    Its windows lie in one file where each is one piece, [W, 2] of start and length; else `offsets`, [W + 1], says which
    of the pieces, [P, 2], belong to each.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        def load(entry: dict[str, Any]) -> NDArray[Any]:
            try:
                # As a plain array over the map: slices of np.memmap take several times as long to make.
                path = checked_array(folder / entry["name"])
                return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                reason = error.strerror if isinstance(error, OSError) else "damaged"
                raise UserError(f"{folder / entry['name']} cannot be read ({reason}); prepare the data again") from None

        self.tokens: int = facts["tokens"]
        self.text_bytes: int = facts["text_bytes"]
        self.sources: list[dict[str, int]] = facts.get("sources", [])
        """In the order of the tokens: number in the recipe, documents, tokens; text_bytes, if not of an older make."""
        self.shards = [load(shard) for shard in facts["shards"]]
        self.masks = [load(shard["mask"]) for shard in facts["shards"] if "mask" in shard]
        self.starts: IntArray = load(facts["starts"])
        self.windows = Windows(load(facts["windows"]), load(facts["offsets"]) if "offsets" in facts else None)
        if not len(self.windows):
            raise UserError(f"a split of {folder} has {self.tokens} tokens, too few to read; prepare more documents")
        self.ends = list(accumulate(len(shard) for shard in self.shards))
        if self.ends[-1] != self.tokens:
            raise UserError(f"the shards in {folder} are shorter than their manifest says; prepare the data again")

    def read(self, arrays: list[NDArray[Any]], start: int, length: int) -> NDArray[Any]:
        """A run of the arrays' concatenation."""
        shard = bisect_right(self.ends, start)
        pieces = []
        while length:
            base = self.ends[shard - 1] if shard else 0
            piece = arrays[shard][start - base : start - base + length]
            pieces.append(piece)
            start, length, shard = start + len(piece), length - len(piece), shard + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
