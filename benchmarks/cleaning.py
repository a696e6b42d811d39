"""Cleaning a corpus on one core, in MB of text a second: the readers, the filters, and decontamination, each alone.

In every round each takes its turn over the same texts; seconds are processor time. The text is the first documents of
every file of LEVERET_DATA, of large files more, and the evaluation sets are all that lie there; else the text is
generated, and so is a set of passages of it. The chain is all kinds of filters but those of a user's own functions, one
after the other; each of them alone sees every text. The hub's reader reads a dataset's folder on the disk: there is no
network in its figure. The memory of the index is what Python and numpy hold for it once it is built.
Run: OMP_NUM_THREADS=1 python benchmarks/cleaning.py [--megabytes 50] [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from leveret.data.config import SourceConfig
from leveret.data.contamination import Decontaminator, contamination, index_sets, render
from leveret.data.filters.chain import Chain
from leveret.data.filters.config import FilterConfig
from leveret.data.overlap import DecontaminateConfig, NgramIndex
from leveret.data.sources import Document, documents, find_files
from leveret.hardware.device import environment, pick_device

FILTERS = TypeAdapter(list[FilterConfig]).validate_python(
    [
        {"kind": "length"},
        {"kind": "language"},
        {"kind": "gopher-quality"},
        {"kind": "gopher-repetition"},
        {"kind": "c4", "terminal_punctuation": False},  # as FineWeb has it
        {"kind": "boilerplate"},
        {"kind": "pii"},
    ]
)
INDEX_BYTES = 64_000_000
"""Most that the index of all sets of LEVERET_DATA may take."""

Way = Callable[[], int]
"""Goes over all texts, and returns how many documents are left."""


def texts_of(size: float) -> list[str]:
    """About so many bytes of text."""
    if "LEVERET_DATA" not in os.environ:
        from data_prep import texts_of as generated

        return first(generated(), size)
    folder = Path(os.environ["LEVERET_DATA"]) / "text"
    files = find_files([str(folder)], folder)
    on_disk = sum(file.stat().st_size for file in files)
    found = []
    for file in files:
        texts = (document.text for document in documents(SourceConfig(paths=[str(file)]), folder, {}))
        found += first(texts, size * file.stat().st_size / on_disk)
    return found


def first(texts: Iterable[str], size: float) -> list[str]:
    """The first texts, until they are so many bytes or more."""
    found = []
    for text in texts:
        found.append(text)
        size -= len(text.encode())
        if size <= 0:
            break
    return found


def sets_of(texts: list[str], work: Path) -> list[str]:
    """Evaluation sets: those of LEVERET_DATA, else the beginnings of some of the texts."""
    if "LEVERET_DATA" in os.environ:
        return [str(Path(os.environ["LEVERET_DATA"]) / "bench")]
    passages = (" ".join(text.split()[:50]) for text in texts[::100])
    (work / "generated.jsonl").write_text("\n".join(json.dumps({"text": passage}) for passage in passages))
    return [str(work / "generated.jsonl")]


# --- the ways ------------------------------------------------------------------------------------------------


def readers(texts: list[str], work: Path) -> dict[str, Way]:
    """Reading and parsing of files that are written for it, one for each format."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    for suffix, compression in (("", None), (".gz", "gzip"), (".zst", "zstd")):
        with pa.output_stream(str(work / f"texts.jsonl{suffix}"), compression=compression) as file:
            file.write(lines)
    (work / "dataset").mkdir()
    pq.write_table(pa.table({"text": texts}), work / "dataset" / "texts.parquet", row_group_size=1000)
    datasets.config.HF_DATASETS_CACHE = work / "cache"
    names = ("dataset/texts.parquet", "texts.jsonl", "texts.jsonl.gz", "texts.jsonl.zst")
    sources = {f"read {Path(name).suffixes[-1]}": SourceConfig(paths=[name]) for name in names}
    sources["read as the hub's"] = SourceConfig(kind="hub", name=str(work / "dataset"))
    return {name: partial(read, source, work) for name, source in sources.items()}


def read(source: SourceConfig, base_dir: Path) -> int:
    return sum(1 for _ in documents(source, base_dir, {}))


def filters(texts: list[str]) -> dict[str, Way]:
    """All in a row, and each alone."""
    chains = {"all filters": Chain(FILTERS, Path())}
    chains |= {f"  {config.kind}": Chain([config], Path()) for config in FILTERS}
    return {name: partial(keep, chain, texts) for name, chain in chains.items()}


def keep(chain: Chain, texts: list[str]) -> int:
    return sum(chain(text).text is not None for text in texts)


def taken_turns(ways: dict[str, Way], rounds: int) -> dict[str, tuple[list[float], int]]:
    """By name, processor seconds of each round, and what the last one returned."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    left: dict[str, int] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            left[name] = way()
            seconds[name].append(time.process_time() - start)
    return {name: (seconds[name], left[name]) for name in ways}


# --- the index -----------------------------------------------------------------------------------------------


def held(make: Callable[[], NgramIndex]) -> tuple[int, int]:
    """Bytes that an index holds once it is made, and the most while it is."""
    gc.collect()
    tracemalloc.start()
    index = make()
    gc.collect()
    after, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.sets
    return after, most


def facts_of(index: NgramIndex, sets: list[str], seconds: float) -> dict[str, Any]:
    after, most = held(lambda: index_sets(sets, Path()))
    return {
        "name": "index",
        "sets": len(index.sets),
        "examples": sum(coverage.passages for coverage in index.sets.values()),
        "ngrams": len(np.unique(index._table.hashes)),
        "bytes": after,
        "bytes_reckoned": index.nbytes,
        "bytes_while_built": most,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = texts_of(arguments.megabytes * 1e6)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} documents, {megabytes:.1f} MB")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sets = sets_of(texts, work)
        clean = Decontaminator(DecontaminateConfig(sets=sets), Path())
        ways = readers(texts, work) | filters(texts)
        ways["decontamination"] = lambda: sum(verdict.text is not None for verdict in clean.each(texts))
        ways["index"] = lambda: len(index_sets(sets, Path()).sets)
        measured = taken_turns(ways, arguments.rounds)
        index = facts_of(clean.index, sets, statistics.median(measured.pop("index")[0]))
    for name, (seconds, left) in measured.items():
        rates = [megabytes / each for each in seconds]
        row = {
            "name": name.strip(),
            "mb_per_s": round(statistics.median(rates), 1),
            "kept": round(left / len(texts), 4),
        }
        rows.append(row)
        extremes = f"({min(rates):.1f} to {max(rates):.1f})"
        print(f"{name:<20}{row['mb_per_s']:7.1f} MB/s  {extremes:<17}{row['kept']:8.2%} kept")
    print(f"index of {index['sets']} sets: {index['ngrams']:,} n-grams of {index['examples']:,} examples", end=", ")
    print(f"{index['bytes'] / 1e6:.1f} MB ({index['bytes_while_built'] / 1e6:.1f} while built), {index['seconds']} s")
    report = contamination((Document(text, "texts") for text in texts), clean.index, shown=0)
    print(render(report))
    found = [{"set": name, "found": len(of.examples), "documents": of.documents} for name, of in report.sets.items()]
    goals = {"index_bytes": {"value": index["bytes"], "goal": INDEX_BYTES}}
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "cleaning", "machine": machine, "rows": [*rows, index, *found], "goals": goals}))


if __name__ == "__main__":
    main()
