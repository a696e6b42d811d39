"""Reading takes the memory of a few chunks, whatever a file holds; measured in a process of its own."""

import gzip
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leveret.data.rows import MAX_BLOCK_BYTES

MIB = 1 << 20
LONG = 195 * MIB

PEAK = """
import re, resource, sys
from pathlib import Path
from leveret.data.config import SourceConfig
from leveret.data.sources import chunks, pieces, read_chunk
import pyarrow.parquet

def mib(field):
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where the highest is in bytes; on Linux it would be that of the parent, if higher
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
    return int(re.search(field + r":\\s+(\\d+) kB", status.read_text())[1]) // 1024

dropped = []
drop = lambda where, why: dropped.append(where)
before = mib("VmRSS")
config = SourceConfig(paths=[sys.argv[1]])
count = sum(1 for p in pieces(config, Path(), {}) for c in chunks(p, drop) for _ in read_chunk(c, drop))
print(count, len(dropped), mib("VmHWM") - before)
"""


def peak(path: Path) -> tuple[int, int, int]:
    """(documents, rows dropped, MiB of memory that reading took)."""
    run = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    documents, dropped, mib = map(int, run.stdout.split())
    return documents, dropped, mib


def sparse(path: Path) -> None:
    """One line without end, of NUL characters."""
    with path.open("wb") as file:
        file.write(b'{"text": "x"}\n')
        file.truncate(LONG)


def bomb(path: Path) -> None:
    """A thousand times longer than on disk."""
    with gzip.open(path, "wb") as file:
        for _ in range(LONG // MIB):
            file.write(bytes(MIB))


def archived_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.jsonl", "w") as file:
        for _ in range(LONG // MIB):
            file.write(bytes(MIB))


def spaces(path: Path) -> None:
    path.write_bytes(pa.Codec("zstd").compress(b"word " * (LONG // 5), asbytes=True))


def items(path: Path) -> None:
    with gzip.open(path, "wt", 1) as file:
        file.write("[")
        for _ in range(150):
            file.write('{"text": "' + "y" * MIB + '"},\n')
        file.write('{"text": "' + "y" * (30 * MIB))


def group(path: Path) -> None:
    """One row group of 160 MB."""
    text = random.Random(0).randbytes(20_000).hex()
    pq.write_table(
        pa.table({"text": [f"{n}{text}" for n in range(4000)]}), path, row_group_size=4000, write_batch_size=16
    )


def dictionary(path: Path) -> None:
    """A text of a megabyte hundreds of times over, written once."""
    text = pa.array([random.Random(0).randbytes(500_000).hex()])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), text)})
    pq.write_table(table, path, store_schema=False)


def page(path: Path) -> None:
    pq.write_table(pa.table({"text": [" " * (LONG // 2), "short"]}), path, compression="zstd", row_group_size=1)


def empty(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(1_000_000, pa.string())}), path)


@pytest.mark.parametrize(
    ("name", "make", "documents", "dropped"),
    [
        ("a.jsonl", sparse, 1, 1),
        ("a.jsonl.gz", bomb, 0, 1),
        ("a.txt.gz", bomb, 13, 0),
        ("a.zip", archived_bomb, 0, 1),
        ("a.txt.zst", spaces, 13, 0),
        ("a.json.gz", items, 150, 1),
        ("group.parquet", group, 4000, 0),
        ("dictionary.parquet", dictionary, 400, 0),
        ("page.parquet", page, 1, 1),
        ("empty.parquet", empty, 0, 0),
    ],
)
def test_memory_is_that_of_a_few_chunks(
    tmp_path: Path, name: str, make: Callable[[Path], None], documents: int, dropped: int
) -> None:
    make(tmp_path / name)
    found = peak(tmp_path / name)
    assert found[:2] == (documents, dropped)
    assert found[2] < 12 * MAX_BLOCK_BYTES // MIB
