"""Deduplication: what it finds on a corpus with planted near-duplicates, its memory, and its speed on one core.

The corpus: texts of Zipf words of which some stand twice, the second time edited in scattered words or in one passage
until the Jaccard index of the two, measured exactly, is the planted one. A document that is dropped is wrong if its
true index with every document kept before it is below 0.8 (strict), or below 0.75 (tolerant). The goals are measured
with duplicates of 0.80 to 0.95 and decoys of 0.3 to 0.6; pairs of 0.6 to 0.8, where an estimate must err, are put in
afterwards and reported by themselves. Memory is the highest resident set of a process that keeps N random signatures
and meets a tenth as many near copies of them, beside what the sizes of its arrays say. Seconds are processor time.
Run on Linux with 3 GB to spare: OMP_NUM_THREADS=1 python benchmarks/dedup.py [--scale 1.0]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from leveret.data.dedup import DedupConfig, Fingerprints, Seen, fingerprints

THRESHOLD, NGRAM = 0.8, 5
CONFIG = DedupConfig(near=THRESHOLD, ngram=NGRAM)
GOAL_DOCUMENTS = 10_000_000
FILLS = [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, GOAL_DOCUMENTS]
PLANTED = {"duplicate": (0.80, 0.95, 5000), "decoy": (0.30, 0.60, 5000), "border": (0.60, 0.80, 3000)}
"""Lowest and highest Jaccard index, and how many pairs."""
UNRELATED = 5000
BINS = [0.3, 0.6, 0.65, 0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.81, 0.82, 0.84, 0.86, 0.9, 0.96]

# --- the corpus ----------------------------------------------------------------------------------------------


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    size = min(NGRAM, len(words))
    return set(zip(*(words[start:] for start in range(size)), strict=False))


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


class Writer:
    """Random texts of 40 to 2,000 words, and edited copies of them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        parts = [consonant + vowel for consonant in "bdfglmnprstv" for vowel in "aeiou"]
        self.words = np.array(["".join(self.random.choice(parts, 1 + rank % 4)) for rank in range(20_000)])
        chance = 1 / np.arange(2.7, len(self.words) + 2.7)
        self.chance = np.cumsum(chance / chance.sum())

    def some(self, number: int) -> list[str]:
        return self.words[np.searchsorted(self.chance, self.random.random(number))].tolist()

    def text(self) -> list[str]:
        return self.some(int(np.clip(self.random.lognormal(5.5, 0.8), 40, 2000)))

    def copy(self, words: list[str], low: float, high: float) -> tuple[list[str], float]:
        """An edited copy, and its exact Jaccard index, which is between the two."""
        own = shingles(" ".join(words))
        while True:
            wanted = self.random.uniform(low, high)
            scattered = self.random.random() < 0.7
            order = self.random.permutation(len(words)) if scattered else np.arange(len(words))
            new = self.some(len(words))
            few, many = 0, len(words)  # replaced words: more than wanted, fewer than wanted
            while many - few > 1:
                middle = (few + many) // 2
                index = jaccard(own, shingles(" ".join(self._edited(words, order[:middle], new))))
                few, many = (middle, many) if index >= wanted else (few, middle)
            copy = self._edited(words, order[:few], new)
            if low <= (index := jaccard(own, shingles(" ".join(copy)))) < high and few:
                return copy, index

    def _edited(self, words: list[str], places: np.ndarray, new: list[str]) -> list[str]:
        """A third of the places each: another word, a word more, a word less."""
        edited: list[str | None] = list(words)
        for place in places.tolist():
            kind = place % 3
            edited[place] = new[place] if kind == 0 else f"{words[place]} {new[place]}" if kind == 1 else None
        return [word for word in edited if word is not None]


def corpus(seed: int, scale: float) -> tuple[list[str], list[tuple[str, int, int, float]]]:
    """(texts in random order, the planted pairs: their kind, the numbers of their two texts, their Jaccard index)."""
    writer = Writer(seed)
    texts = [" ".join(writer.text()) for _ in range(int(UNRELATED * scale))]
    pairs = []
    for kind, (low, high, number) in PLANTED.items():
        for _ in range(int(number * scale)):
            words = writer.text()
            copy, index = writer.copy(words, low, high)
            pairs.append((kind, len(texts), len(texts) + 1, index))
            texts += [" ".join(words), " ".join(copy)]
    order = writer.random.permutation(len(texts))
    place = np.argsort(order).tolist()
    return [texts[number] for number in order], [(kind, place[a], place[b], index) for kind, a, b, index in pairs]


# --- what is found -------------------------------------------------------------------------------------------


def nearest_kept(texts: list[str], first: np.ndarray) -> dict[int, float]:
    """For every dropped document the highest true Jaccard index with a document kept before it."""
    sets = [shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    nearest = {}
    for number, own in enumerate(sets):
        if first[number]:
            for shingle in own:
                holders[shingle].append(number)
        else:
            offered = Counter(holder for shingle in own for holder in holders.get(shingle, ()))
            nearest[number] = max((jaccard(own, sets[other]) for other, _ in offered.most_common(20)), default=0.0)
    return nearest


def merit(texts: list[str], pairs: list[tuple[str, int, int, float]]) -> dict[str, float]:
    first = Seen(CONFIG).first(fingerprints(texts, CONFIG))
    found = [not (first[a] and first[b]) for kind, a, b, _ in pairs if kind == "duplicate"]
    nearest = np.array(list(nearest_kept(texts, first).values()))
    return {
        "documents": len(texts),
        "planted": len(found),
        "recall": float(np.mean(found)),
        "precision_strict": float(np.mean(nearest >= THRESHOLD)),
        "precision_tolerant": float(np.mean(nearest >= THRESHOLD - 0.05)),
    }


def without_border(
    texts: list[str], pairs: list[tuple[str, int, int, float]]
) -> tuple[list[str], list[tuple[str, int, int, float]]]:
    left_out = {number for kind, a, b, _ in pairs if kind == "border" for number in (a, b)}
    left = [number for number in range(len(texts)) if number not in left_out]
    place = {number: new for new, number in enumerate(left)}
    kept = [(kind, place[a], place[b], index) for kind, a, b, index in pairs if kind != "border"]
    return [texts[number] for number in left], kept


def by_index(texts: list[str], pairs: list[tuple[str, int, int, float]]) -> list[dict[str, float]]:
    """Of the pairs in each range of the true Jaccard index, the share of which one was dropped."""
    first = Seen(CONFIG).first(fingerprints(texts, CONFIG))
    index = np.array([pair[3] for pair in pairs])
    dropped = np.array([not (first[a] and first[b]) for _, a, b, _ in pairs])
    rows = []
    for low, high in pairwise(BINS):
        inside = (index >= low) & (index < high)
        if inside.any():
            share = round(float(dropped[inside].mean()), 4)
            rows.append({"from": low, "to": high, "pairs": int(inside.sum()), "dropped": share})
    return rows


# --- memory and speed ----------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes, the most so far; not `getrusage`, which starts at what the parent had."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def fill(documents: int) -> dict[str, float]:
    """Holds so many random documents. To be run in a process of its own."""
    random = np.random.default_rng(0)
    width = fingerprints([], CONFIG).signatures.shape[1]
    seen, kept, met, seconds = Seen(CONFIG), 0, 0, 0.0
    while kept < documents:
        number = min(10_000, documents - kept)
        signatures = random.integers(0, 256, (number, width), dtype=np.uint8)
        copies = signatures[: number // 10].copy()
        copies[:, -3:] ^= 255  # of 512 bits 24 are other ones: Jaccard 0.91
        signatures = random.permutation(np.concatenate([signatures, copies]))
        prints = Fingerprints(random.integers(1, 2**63, len(signatures), dtype=np.uint64), signatures)
        start = time.process_time()
        kept += int(seen.first(prints).sum())
        seconds += time.process_time() - start
        met += len(signatures)
    return {"documents": kept, "resident": resident(), "per_s": round(met / seconds) if met else 0}


def reckoned(documents: int) -> int:
    """Bytes of Seen's arrays: 9 tables of 4 bytes and one of 8 a slot, rows of 36 + 64 bytes with 1/8 to spare."""
    slots = 1024
    while documents > 0.7 * slots:
        slots *= 2
    return slots * (9 * 4 + 8) + documents * (36 + 64) * 9 // 8


def in_a_process(documents: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--fill", str(documents)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def megabytes_per_second() -> tuple[str, float]:
    """Of making fingerprints, on one core: the median of five rounds."""
    if "LEVERET_DATA" in os.environ:
        import pyarrow.parquet as pq

        name = "wikinews"
        file = Path(os.environ["LEVERET_DATA"]) / "text" / f"{name}.parquet"
        texts = pq.read_table(file, columns=["text"])["text"].to_pylist()[:5000]
    else:
        name, writer = "generated", Writer(1)
        texts = [" ".join(writer.text()) for _ in range(3000)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates = []
    for _ in range(5):
        start = time.process_time()
        fingerprints(texts, CONFIG)
        rates.append(size / (time.process_time() - start))
    return name, float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="size of the corpus")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill is not None:
        print(json.dumps(fill(arguments.fill)))
        return

    nothing = in_a_process(0)["resident"]
    fills = [in_a_process(number) for number in FILLS]
    print(f"{'kept':>10}  {'resident':>11}  {'reckoned':>11}  {'bytes a document':>16}  {'documents/s':>11}")
    for row in fills:
        row["reckoned"] = nothing + reckoned(row["documents"])
        row["bytes_per_document"] = round(row["resident"] / row["documents"], 1)
        print(f"{row['documents']:>10,}  {row['resident'] / 1e6:8.1f} MB  {row['reckoned'] / 1e6:8.1f} MB", end="  ")
        print(f"{row['bytes_per_document']:16.1f}  {row['per_s']:>11,}")
    name, speed = megabytes_per_second()
    print(f"fingerprints of {name}: {speed:.1f} MB/s")

    texts, pairs = corpus(0, arguments.scale)
    ranges = by_index(texts, pairs)
    for row in ranges:
        print(f"Jaccard {row['from']:.2f} to {row['to']:.2f}  {row['pairs']:>6,} pairs  {row['dropped']:7.2%} dropped")
    plain, mixed = merit(*without_border(texts, pairs)), merit(texts, pairs)
    for title, found in (("planted", plain), ("and border", mixed)):
        print(f"{title:<11} recall {found['recall']:.4f}  precision {found['precision_strict']:.4f} strict", end="  ")
        print(f"{found['precision_tolerant']:.4f} tolerant  ({found['documents']:,} documents)")

    from leveret.hardware.device import environment, pick_device  # torch: not in the processes that are measured

    result = {
        "benchmark": "dedup",
        "machine": environment(pick_device("cpu")),
        "rows": [*fills, *ranges, plain, mixed],
        "goals": {
            "recall": {"value": plain["recall"], "goal": 0.98},
            "precision": {"value": plain["precision_strict"], "goal": 0.98},
            "bytes_per_document": {"value": fills[-1]["bytes_per_document"], "goal": 214},
            "documents_per_s": {"value": min(row["per_s"] for row in fills), "goal": 50_000},
            "fingerprints_mb_per_s": {"value": round(speed, 1), "goal": 20},
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
