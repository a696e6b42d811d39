"""The same shards from any number of processes, and from any number of attempts that were killed."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from leveret.data.config import DataConfig
from leveret.data.parts import Job
from leveret.data.prepare import prepare_documents
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "su", "te", "no") for b in ("ra", "ben", "dil", "fo", "gus", "pex")]
FILTERED: dict[str, Any] = {
    "filters": [{"kind": "pii"}, {"kind": "length", "least_words": 60}],
    "dedup": {"exact": True, "near": 0.8},
    "shard_tokens": 100_000,
    "validation_fraction": 0.02,
}


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(20, 400)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet and JSON lines of 45 MB in all, with repeated documents, addresses, and rows that cannot be read."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(1)
    repeated = [text(rng) for _ in range(20)]
    for number in range(3):
        texts = [text(rng) if rng.random() > 0.1 else rng.choice(repeated) for _ in range(9000)]
        texts[::100] = [f"{each} ask ka@lo.org or su@te.org" for each in texts[::100]]
        pq.write_table(pa.table({"text": texts}), folder / f"part-{number}.parquet")
    with (folder / "rows.jsonl").open("wb") as file:
        for number in range(9000):
            row = json.dumps({"text": text(rng) if rng.random() > 0.1 else rng.choice(repeated)})
            file.write(b"{broken\n" if number % 1000 == 7 else row.encode() + b"\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = random.Random(0)
    config = TokenizerConfig(kind="bpe", vocab_size=400, special_tokens=["<eos>"], eos_token="<eos>")
    return train_tokenizer(config, [text(rng) for _ in range(50)])


def prepare(corpus: Path, tokenizer: Tokenizer, folder: Path, **settings: Any) -> dict[str, Any]:
    """The manifest."""
    config = DataConfig.model_validate({"sources": [{"paths": [str(corpus)]}]} | FILTERED | settings)
    job, console = Job(tokenizer, config, corpus), Console(file=io.StringIO())
    prepare_documents(job, {}, 128, folder, {"tokenizer": tokenizer.content_hash}, console)
    store = TokenStore(folder)
    assert store.verify() == []
    return store.manifest


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return prepare(corpus, tokenizer, tmp_path_factory.mktemp("undisturbed") / "shards", workers=1)


def test_the_manifest_counts_what_was_left_out(undisturbed: dict[str, Any]) -> None:
    (counts,) = undisturbed["documents"]
    assert counts["filters"]["pii"] == {"dropped": 0, "changed": 3 * 90, "edits": {"email": 2 * 3 * 90}}
    assert counts["unreadable"]["count"] == 9
    assert counts["unreadable"]["first"][1]["where"].endswith("rows.jsonl:1008")
    dropped, duplicates = counts["filters"]["length"]["dropped"], undisturbed["duplicates"]
    assert dropped > 1000
    assert duplicates["exact"] > 1000
    assert counts["read"] == 4 * 9000 - 9 == counts["kept"] + dropped + sum(duplicates.values())
    assert sum(split["documents"] for split in undisturbed["splits"].values()) == counts["kept"]
    assert len(undisturbed["splits"]["train"]["shards"]) > 10


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_makes_the_same_shards(
    workers: int, corpus: Path, tokenizer: Tokenizer, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    assert prepare(corpus, tokenizer, tmp_path / "shards", workers=workers) == undisturbed


def test_what_is_there_is_not_made_again(
    corpus: Path, tokenizer: Tokenizer, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an attempt that a full disk stopped in the merge, no part is made again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leveret.data.shards.np.save", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(corpus, tokenizer, tmp_path / "shards", workers=1)
    assert not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    monkeypatch.setattr("leveret.data.parts.PartMaker.make", full)
    assert prepare(corpus, tokenizer, tmp_path / "shards", workers=1) == undisturbed


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [flipped, lambda _: b"", lambda content: content[:-30]], ids=["bit", "empty", "short"]
)
def test_a_damaged_part_is_named_and_made_again(
    corpus: Path,
    tokenizer: Tokenizer,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    monkeypatch.setattr("leveret.data.prepare.merge", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
    with pytest.raises(UserError, match="stopped"):
        prepare(corpus, tokenizer, tmp_path / "shards", workers=1)
    monkeypatch.undo()
    part = sorted(tmp_path.glob("shards.parts-*/*/*.npz"))[-1]
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(UserError, match=f"{part.name} is damaged"):
        prepare(corpus, tokenizer, tmp_path / "shards", workers=1)
    assert prepare(corpus, tokenizer, tmp_path / "shards", workers=1) == undisturbed


def test_most_documents_of_a_source_are_the_first_ones(
    corpus: Path, tokenizer: Tokenizer, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    sources = [{"paths": [str(corpus)], "max_documents": 10_000}]
    manifests = [
        prepare(corpus, tokenizer, tmp_path / str(workers), sources=sources, workers=workers) for workers in (1, 3)
    ]
    assert manifests[0] == manifests[1]
    assert manifests[0]["documents"][0]["read"] == 10_000
    whole, cut = (m["splits"]["train"]["shards"] for m in (undisturbed, manifests[0]))
    assert [shard["sha256"] for shard in cut[:-1]] == [shard["sha256"] for shard in whole[: len(cut) - 1]]


def test_strict_stops_at_the_first_row_that_cannot_be_read(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:8: "):
        prepare(corpus, tokenizer, tmp_path / "shards", strict=True, workers=2)


# --- kill -9 -------------------------------------------------------------------------------------------------

KILLS = 20


def kill_at_random_moments(corpus: Path, folder: Path, kills: int, span: float) -> None:
    """Kills `leveret prepare` with all its workers so many times within span seconds, then lets it end.

    An attempt that ended before it was killed is taken away, and the next one begins from nothing.
    """
    recipe = {
        "name": "killed",
        "tokenizer": {"kind": "bpe", "vocab_size": 400, "special_tokens": ["<eos>"], "eos_token": "<eos>"},
        "data": {"sources": [{"paths": [str(corpus)]}], "workers": 2} | FILTERED,
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                  "max_position_embeddings": 128},
        "pretrain": {"steps": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "leveret", "prepare", "recipe.yaml", "--run-dir", "run", "--copy-data"]
    rng, killed = random.Random(2), 0
    while killed < kills:
        process = subprocess.Popen(command, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4, span))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        else:
            shutil.rmtree(folder / "run")
        process.wait()
    subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)


def hashes(run: Path) -> dict[str, str]:
    (shards,) = (path for path in (run / "shards").iterdir() if path.is_dir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards.iterdir()}


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    for name in ("once", "often"):
        (tmp_path / name).mkdir()
    started = time.monotonic()
    kill_at_random_moments(corpus, tmp_path / "once", 0, 0)
    kill_at_random_moments(corpus, tmp_path / "often", KILLS, time.monotonic() - started)
    once, often = (hashes(tmp_path / name / "run") for name in ("once", "often"))
    assert "manifest.json" in once
    assert once == often
