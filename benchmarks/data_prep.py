"""Text to token shards: ours from parquet to verified shards, the encoder's own limit, and what others offer.

In every round each takes its turn over the same parquet files on all cores: tiktoken over strings in memory (the
limit), `prepare_documents`, `datasets` with tokenizers and with tiktoken, datatrove's tokenizer step. The text is that
of LEVERET_DATA, else generated. Each stands in a process of its own, whose start is not counted.
Run: python benchmarks/data_prep.py [--megabytes 60] [--rounds 3]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from leveret.data.config import DataConfig
from leveret.data.parts import Job
from leveret.data.prepare import prepare_documents
from leveret.hardware.device import environment, pick_device
from leveret.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

CORES = len(os.sched_getaffinity(0))
BATCH = 1000


def write_corpus(folder: Path, megabytes: int) -> int:
    """Parquet files of about 8 MB of text each, 4 for each core at least; returns the bytes of text."""
    texts, size = [], 0
    for text in texts_of():
        texts.append(text)
        size += len(text.encode())
        if size >= megabytes * 10**6:
            break
    each = -(-len(texts) // max(4 * CORES, megabytes // 8))
    for number, start in enumerate(range(0, len(texts), each)):
        pq.write_table(pa.table({"text": texts[start : start + each]}), folder / f"{number:03d}.parquet")
    return size


def texts_of() -> Any:
    data = os.environ.get("LEVERET_DATA")
    if data:
        for name in ("wikipedia_2015", "gutenberg", "wikinews"):
            yield from pq.read_table(f"{data}/text/{name}.parquet", columns=["text"])["text"].to_pylist()
        return
    from leveret.tasks.generators import DOCUMENTS

    lessons = [document.text for document in DOCUMENTS["shell-lessons"](per_intent=200)]
    while True:
        for start in range(0, len(lessons), 20):
            yield "\n\n".join(lessons[start : start + 20])


# --- the ways ------------------------------------------------------------------------------------------------


def limit(corpus: Path, tokenizer: Path, work: Path) -> float:
    """Seconds of tiktoken on strings in memory, all cores."""
    loaded = Tokenizer.load(tokenizer)
    texts = [t for path in sorted(corpus.iterdir()) for t in pq.read_table(path)["text"].to_pylist()]
    start = time.perf_counter()
    loaded._twin.encode_ordinary_batch(texts, num_threads=CORES)  # type: ignore[union-attr]
    return time.perf_counter() - start


def leveret(corpus: Path, tokenizer: Path, work: Path) -> float:
    config = DataConfig.model_validate({"sources": [{"paths": [str(corpus)]}], "document_format": "{text}"})
    job = Job(Tokenizer.load(tokenizer), config, corpus)
    start = time.perf_counter()
    prepare_documents(job, {}, 1024, work / "shards", {}, Console(file=io.StringIO()))
    return time.perf_counter() - start


def datasets_map(corpus: Path, tokenizer: Path, work: Path, fast: bool) -> float:
    import datasets

    datasets.disable_progress_bars()
    loaded = Tokenizer.load(tokenizer)
    if fast:
        encode: Callable[[list[str]], Any] = lambda texts: [loaded.encode(text) for text in texts]  # noqa: E731
    else:
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_file(str(tokenizer / "tokenizer.json"))
        encode = lambda texts: [e.ids for e in backend.encode_batch_fast(texts)]  # noqa: E731
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = time.perf_counter()
    data = datasets.load_dataset(
        "parquet", data_files=[str(p) for p in sorted(corpus.iterdir())], cache_dir=str(work), split="train"
    )
    data.map(lambda row: {"ids": encode(row["text"])}, batched=True, batch_size=BATCH, num_proc=CORES,
             remove_columns=data.column_names)  # fmt: skip
    return time.perf_counter() - start


def datatrove(corpus: Path, tokenizer: Path, work: Path) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    steps = [
        ParquetReader(str(corpus)),
        DocumentTokenizer(str(work / "out"), str(tokenizer / "tokenizer.json"), shuffle_documents=False),
    ]
    start = time.perf_counter()
    LocalPipelineExecutor(steps, tasks=CORES, workers=CORES, logging_dir=str(work / "logs")).run()
    return time.perf_counter() - start


WAYS: dict[str, Callable[[Path, Path, Path], float]] = {
    "tiktoken in memory": limit,
    "leveret": leveret,
    "datasets + tokenizers": lambda *paths: datasets_map(*paths, fast=False),
    "datasets + tiktoken": lambda *paths: datasets_map(*paths, fast=True),
    "datatrove": datatrove,
}


def seconds(name: str, corpus: Path, tokenizer: Path) -> float:
    """Of one way, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(theirs, name, corpus, tokenizer, Path(work)))
        process.start()
        theirs.close()
        taken: float = ours.recv()
        process.join()
    return taken


def _measure(pipe: Any, name: str, corpus: Path, tokenizer: Path, work: Path) -> None:
    pipe.send(WAYS[name](corpus, tokenizer, work))


def tokenizers(folder: Path, corpus: Path) -> dict[str, Path]:
    """A BPE of 32k entries trained on the text and, where its ranks are at hand, GPT-2's."""
    texts = [text for path in sorted(corpus.iterdir())[:4] for text in pq.read_table(path)["text"].to_pylist()]
    found = {"bpe-32k": train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=32_000), texts)}
    ranks = Path(os.environ.get("LEVERET_DATA", "")) / "tokenizers" / "r50k_base.tiktoken"
    if ranks.is_file():
        config = TokenizerConfig(kind="tiktoken", source="gpt2", ranks_file=str(ranks))
        found["gpt2"] = load_tokenizer(config, Path())
    for name, tokenizer in found.items():
        tokenizer.save(folder / name)
    return {name: folder / name for name in found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows, goals = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        megabytes = write_corpus(corpus, arguments.megabytes) / 1e6
        for encoding, tokenizer in tokenizers(Path(scratch), corpus).items():
            rounds = [{name: seconds(name, corpus, tokenizer) for name in WAYS} for _ in range(arguments.rounds)]
            for name in WAYS:
                rates = [megabytes / taken[name] for taken in rounds]
                rate = statistics.median(rates)
                rows.append({"encoding": encoding, "way": name, "mb_per_s": round(rate, 2)})
                print(f"{encoding:<8} {name:<22} {rate:7.2f} MB/s  ({min(rates):.2f} to {max(rates):.2f})")
            peers = [name for name in WAYS if name not in ("leveret", "tiktoken in memory")]
            of_limit = statistics.median(taken["tiktoken in memory"] / taken["leveret"] for taken in rounds)
            vs_peer = statistics.median(min(taken[name] for name in peers) / taken["leveret"] for taken in rounds)
            goals[f"of_limit_{encoding}"] = {"value": round(of_limit, 3), "goal": 0.8}
            goals[f"vs_best_peer_{encoding}"] = {"value": round(vs_peer, 3), "goal": 1.5}
    goals["of_limit"] = min((v for k, v in goals.items() if k.startswith("of_limit")), key=lambda goal: goal["value"])
    goals["vs_best_peer"] = min((v for k, v in goals.items() if k.startswith("vs_")), key=lambda goal: goal["value"])
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "data_prep", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
