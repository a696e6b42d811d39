"""Files that lie about what they hold, where a verb opens them: refused in a line before anything large is made."""

import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leveret.data.parts import Part
from leveret.errors import UserError
from leveret.inference.dialogue import Dialogue
from leveret.rundir import RunDir
from leveret.serving.runview import RunView
from leveret.strangers.documents import JSON_BYTES, YAML_BYTES
from leveret.strangers.tensors import checked_arrays
from leveret.tasks.benchmarks import load_benchmark
from leveret.tokenizer import SpecialRoles, Tokenizer
from leveret.training.lock import LONGEST, Lock, holder
from leveret.training.metrics import Lines

SOUND = b"{'descr': '<u2', 'fortran_order': False, 'shape': (8,), }\n"
DEEP = "[" * 100_000


def npy(header: bytes = SOUND, size: int = 16) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


def npz(path: Path, *members: tuple[str, bytes], packed: bool = False) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path.read_bytes()


def sparse(path: Path, size: int) -> Path:
    """A file of so many zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


# --- .npz --------------------------------------------------------------------------------------------------------

LYING: dict[str, Callable[[Path], bytes]] = {
    "a shape beyond the file": lambda p: npz(p, ("a.npy", npy(SOUND.replace(b"8,", b"999999999999,")))),
    "a shape of more than there is": lambda p: npz(p, ("a.npy", npy(SOUND.replace(b"8,", b"9,")))),
    "objects": lambda p: npz(p, ("a.npy", npy(SOUND.replace(b"<u2", b"|O")))),
    "a header of levels": lambda p: npz(p, ("a.npy", npy(SOUND.replace(b"(8,)", b"(" * 5000)))),
    "an array twice": lambda p: npz(p, ("a.npy", npy())) and _twice(p),
    "packed zeros": lambda p: npz(p, ("a.npy", npy(SOUND.replace(b"8,", b"8000000,"), 16_000_000)), packed=True),
    "no array": lambda p: npz(p, ("a.npy", b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
    "cut short": lambda p: npz(p, ("a.npy", npy()))[:-30],
    "a size that is not there": lambda p: npz(p, ("a.npy", npy())).replace(struct.pack("<I", len(npy())), b"\xf0" * 4),
    "empty": lambda p: b"",
    "no archive": lambda p: npy(),
}  # fmt: skip


def _twice(path: Path) -> bytes:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", npy())
    return path.read_bytes()


@pytest.mark.parametrize("name", LYING)
def test_an_npz_that_lies_is_refused_before_anything_is_made_of_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "000000.npz"
    path.write_bytes(LYING[name](path))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"000000\.npz"):
        checked_arrays(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2_000_000
    with pytest.raises(UserError, match=r"is damaged .* it is deleted, prepare again"):
        Part.read(path)
    assert not path.exists()


def test_what_numpy_writes_into_an_npz_is_taken(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5, dtype=np.uint16), "b": np.zeros(0, bool), "c": np.ones((2, 3), dtype=np.uint64)}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    with np.load(checked_arrays(tmp_path / "x.npz"), allow_pickle=False) as file:
        assert {name: array.tolist() for name, array in file.items()} == {n: a.tolist() for n, a in arrays.items()}


@pytest.mark.parametrize("told", [b"[]", b"{}", DEEP.encode(), b'{"unreadable": 3}', b'{"unreadable": {}, "code": 1}'])
def test_a_part_that_tells_something_else_is_refused(told: bytes, tmp_path: Path) -> None:
    path = tmp_path / "000000.npz"
    none = np.zeros(0, dtype=np.int64)
    arrays = dict.fromkeys(("tokens", "lengths", "text_bytes", "validation", "fate"), none)
    np.savez(path, allow_pickle=False, told=np.frombuffer(told, dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is damaged"):
        Part.read(path)


# --- benchmarks, dialogues, runs ---------------------------------------------------------------------------------


def test_a_file_of_questions_without_end_is_refused(tmp_path: Path) -> None:
    sparse(tmp_path / "copa.jsonl", 2**40)
    with pytest.raises(UserError, match=r"copa\.jsonl cannot be read \(it has 1,099,511,627,776 bytes, and at most"):
        load_benchmark("copa", tmp_path)
    (tmp_path / "copa.jsonl").write_text(DEEP + "\n")
    with pytest.raises(UserError, match=r"copa\.jsonl, line 1 is not JSON \(it has more than 64 levels\)"):
        load_benchmark("copa", tmp_path)
    (tmp_path / "copa.jsonl").unlink()
    os.mkfifo(tmp_path / "copa.jsonl")
    with pytest.raises(UserError, match="no plain file"):
        load_benchmark("copa", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP, "it has more than 64 levels"),
        ('{"messages": ' * 100 + "1" + "}" * 100, "it has more than 64 levels"),
        ("{'messages': []}", "it is not JSON"),
        ('{"format_version": 1, "messages": [{"role": "user", "content": ', "it is not JSON"),
        ("9" * 5000, "is no dialogue"),
    ],
)
def test_a_dialogue_that_is_something_else_is_refused_in_a_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        Dialogue.load(path)
    assert "\n" not in str(caught.value)


def test_a_dialogue_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"and at most {JSON_BYTES:,} are read"):
        Dialogue.load(sparse(tmp_path / "talk.json", 2**40))


@pytest.mark.parametrize(
    "definition", ["[]", "{}", DEEP, '{"added_tokens": [], "added_tokens": []}', '{"model": 1}', "9"]
)
def test_a_tokenizer_that_is_something_else_is_refused_in_a_line(definition: str) -> None:
    with pytest.raises(UserError, match="not a tokenizer") as caught:
        Tokenizer(definition, SpecialRoles())
    assert "\n" not in str(caught.value)


def test_a_run_whose_texts_have_no_end_is_shown_without_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "pretrain").mkdir(parents=True)
    (run / "pretrain" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "lr": 0.1}) + "\n")
    sparse(run / "pretrain" / "samples.md", 2**40)
    sparse(run / "recipe.yaml", 2**40)
    _, found = RunView(run).read()
    assert found["stages"][0]["samples"] == []
    with pytest.raises(UserError, match=rf"recipe\.yaml cannot be read \(.* and at most {YAML_BYTES:,} are read"):
        RunDir(run).recipe()


def test_what_a_lock_says_and_how_long_a_log_is_cost_nothing(tmp_path: Path) -> None:
    with Lock(tmp_path):
        with (tmp_path / "lock").open("a") as file:
            file.write("x" * 10**6)
        assert len(holder(tmp_path) or "") <= LONGEST
    log = sparse(tmp_path / "events.jsonl", 2**40)  # whose last line is not whole
    lines = Lines(log)
    lines.write({"step": 1})
    lines.close()
    with log.open("rb") as file:
        file.seek(2**40)
        assert file.read() == b'\n{"step": 1}\n'
