"""`leveret data convert IN OUT`: examples in any known format to .jsonl."""

from pathlib import Path

from leveret.data.examples import read_examples, write_examples


def convert(in_path: str | Path, out_path: Path) -> int:
    """Read examples (a file, a folder, a glob, or `instructions.txt,commands.txt`), write .jsonl; their count.

    IN may be OUT: the new file takes its place only when all of it is written. UserError as `read_examples`.
    """
    return write_examples(out_path, read_examples(in_path))
