"""`leveret data convert IN OUT`: examples and preference pairs in any known format to .jsonl."""

from pathlib import Path

from leveret.data.examples import read_pairs_or_examples, write_examples
from leveret.data.rows import Drop, refuse


def convert(in_path: str | Path, out_path: Path, drop: Drop = refuse) -> int:
    """Read examples (a file, a folder, a glob, or `instructions.txt,commands.txt`), write .jsonl; their count.

    Rows with two answers become preference pairs, the others examples. What is neither is told to `drop`. IN may be
    OUT: the new file takes its place only when all of it is written. UserError as `read_examples`.
    """
    return write_examples(out_path, read_pairs_or_examples(in_path, drop))
