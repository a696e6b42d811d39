"""Files with headers that lie are refused in one line, before anything is made of them."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leveret.errors import UserError
from leveret.recipe import load_recipe, recipe_of_yaml, shipped_recipes
from leveret.strangers.documents import LEVELS, Loader, parse_json, parse_yaml, read_json
from leveret.strangers.files import beside, read_limited
from leveret.strangers.gguf import checked_gguf
from leveret.strangers.tensors import HEADER_BYTES, checked_array, checked_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}


def safetensors(header: Any, size: int, *, length: int | None = None) -> bytes:
    """A file with this header (JSON text, or what becomes it) and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LIES: dict[str, bytes] = {
    "empty": b"",
    "shorter than a length": b"\0" * 7,
    "a header without end": safetensors({}, 0, length=2**63),
    "a header beyond the file": safetensors({"a": entry()}, 8, length=10_000),
    "a header too large": struct.pack("<Q", HEADER_BYTES + 1) + b" " * (HEADER_BYTES + 1),
    "levels without end": safetensors(b"[" * 200_000, 0),
    "levels": safetensors(b'{"a":' * (LEVELS + 1) + b"1" + b"}" * (LEVELS + 1), 0),
    "a list": safetensors([], 0),
    "no JSON": safetensors(b"{'a': 1}", 0),
    "a name twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), 8),
    "a key twice": safetensors(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
    "a gap": safetensors({"a": entry(), "b": entry(begin=16, end=24)}, 24),
    "a gap in front": safetensors({"a": entry(begin=8, end=16)}, 16),
    "an overlap": safetensors({"a": entry(), "b": entry(begin=4, end=12)}, 12),
    "the same place": safetensors({"a": entry(), "b": entry()}, 8),
    "bytes left over": safetensors({"a": entry()}, 9),
    "bytes missing": safetensors({"a": entry()}, 7),
    "a shape too large": safetensors({"a": entry(shape=[2**40, 2**40])}, 8),
    "a shape too small": safetensors({"a": entry(shape=[1])}, 8),
    "a negative shape": safetensors({"a": entry(shape=[-1, -2])}, 8),
    "a shape of fractions": safetensors({"a": entry(shape=[2.0])}, 8),
    "a shape of truths": safetensors({"a": entry(shape=[True, 2])}, 8),
    "many digits": safetensors(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 9999), 8),
    "many dimensions": safetensors({"a": entry(shape=[1] * 99 + [2])}, 8),
    "an unknown type": safetensors({"a": entry(dtype="F4")}, 8),
    "a type of another kind": safetensors({"a": entry() | {"dtype": ["F32"]}}, 8),
    "backwards": safetensors({"a": entry(begin=8, end=0)}, 8),
    "beyond the end": safetensors({"a": entry(begin=2**50, end=2**50 + 8)}, 8),
    "three places": safetensors({"a": entry() | {"data_offsets": [0, 4, 8]}}, 8),
    "more keys": safetensors({"a": entry() | {"code": "x"}}, 8),
    "no description": safetensors({"a": 3}, 0),
    "metadata of objects": safetensors({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, 8),
    "not a number": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8),
}


@pytest.mark.parametrize("name", LIES)
def test_a_safetensors_header_that_lies_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(LIES[name])
    with pytest.raises(UserError, match=r"x\.safetensors is no whole safetensors file \(.+\)$") as caught:
        checked_tensors(path)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_what_the_library_writes_is_taken(tmp_path: Path) -> None:
    for number, tensors in enumerate((TENSORS, {}, {"x": torch.tensor(1), "y": torch.ones(3, dtype=torch.uint8)})):
        save_file(tensors, tmp_path / f"{number}", {"format": "pt"})
        assert load_file(checked_tensors(tmp_path / f"{number}")).keys() == tensors.keys()


def test_no_change_of_a_few_bytes_makes_the_library_fail_where_the_check_did_not(tmp_path: Path) -> None:
    """What is let through is read, and is of the sizes that its header says."""
    path, chance = tmp_path / "x.safetensors", random.Random(3)
    save_file(TENSORS, path)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    taken = 0
    for _ in range(1500):
        spoilt = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5))):
            spoilt[chance.randrange(length)] = chance.choice((*b'0123456789",:[]{}abFIU', chance.randrange(256)))
        path.write_bytes(spoilt[: chance.choice((None, None, None, chance.randrange(len(whole))))])
        try:
            checked_tensors(path)
        except UserError:
            continue
        assert sum(tensor.nbytes for tensor in load_file(path).values()) == len(whole) - length
        taken += 1
    assert 0 < taken < 1200


# --- .npy --------------------------------------------------------------------------------------------------------


def npy(text: bytes, size: int = 16, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + bytes(size)


SOUND = b"{'descr': '<u2', 'fortran_order': False, 'shape': (8,), }\n"


@pytest.mark.parametrize(
    "content",
    [
        npy(SOUND.replace(b"<u2", b"|O")),
        npy(SOUND.replace(b"'<u2'", b"[('a', '<u2')]")),
        npy(SOUND.replace(b"<u2", b"<V2")),
        npy(SOUND.replace(b"<u2", b">u2")),
        npy(SOUND.replace(b"8", b"9")),
        npy(SOUND.replace(b"8,", b"-8,")),
        npy(SOUND.replace(b"8,", b"8**9**9,")),
        npy(SOUND.replace(b"8,", b"9999999999999999, 9999999999999999")),
        npy(SOUND.replace(b"8,", b"9" * 5000)),
        npy(SOUND.replace(b"(8,)", b"(" * 5000)),
        npy(SOUND.replace(b"False", b"__import__('os').abort()")),
        npy(SOUND.replace(b"False", b"True")),
        npy(SOUND, 17),
        npy(SOUND, 15),
        npy(SOUND, version=b"\x03\x00"),
        npy(SOUND)[:20],
        b"",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_an_array_header_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"no array of plain numbers|do not fit its shape"):
        checked_array(tmp_path / "x.npy")


def test_what_numpy_writes_of_plain_numbers_is_taken(tmp_path: Path) -> None:
    for array in (np.arange(5, dtype=np.uint16), np.ones((3, 2)), np.zeros(0, bool), np.float32(3), np.ones((1, 2, 3))):
        np.save(tmp_path / "x.npy", array, allow_pickle=False)
        assert np.load(checked_array(tmp_path / "x.npy"), allow_pickle=False).shape == np.shape(array)


# --- JSON, YAML --------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100,000 values"),
        ("[" * 100_000, f"more than {LEVELS} levels"),
        ("".join("\n" + " " * level + "a:" for level in range(500)), f"more than {LEVELS} levels"),
        ("a: &a [*a]", "an alias stands inside what it names"),
        ("a: " + "9" * 100_000, "integer string conversion"),
        ("a: 2026-13-45", "month must be in"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: " + "x" * 2**20, "at most 1,048,576"),
        ("a: \0", "special characters are not allowed"),
        ("b:\n  a: 1\n  c: 2\n  a: 3", "'a' is there twice, from line 2 on"),
    ],
)
def test_a_recipe_that_is_a_bomb_is_refused_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"bomb.yaml is not readable YAML: .*{said}") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not readable YAML"):
        recipe_of_yaml(text, "bomb.yaml")


def test_aliases_that_stay_small_are_taken_and_every_shipped_recipe_is() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {
        "a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]
    }  # fmt: skip
    assert parse_yaml("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}")["c"] == {"x": 3}  # what is merged yields
    for path in shipped_recipes().values():
        assert parse_yaml(path.read_text("utf-8")) == yaml.safe_load(path.read_text("utf-8"))


def test_json_is_bounded_in_bytes_and_levels(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("[" * 10**6, "[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70):
        path.write_text(content)
        with pytest.raises(ValueError, match="levels"):
            read_json(path)
    path.write_text("[1, 2, 3]")
    assert read_json(path) == [1, 2, 3]
    with pytest.raises(ValueError, match="at most 8 are read"):
        read_json(path, 8)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no plain file"):
        read_limited(tmp_path / "pipe", 10)
    with pytest.raises(ValueError, match="no plain file"):
        read_limited(Path("/dev/zero"), 10)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="[]{},:&*a1 -\n'\"|>!<%#?", max_size=60))
def test_any_text_is_yaml_or_refused_as_such(text: str) -> None:
    try:
        parse_yaml(text, Loader)
    except yaml.YAMLError:
        return


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet='[]{},:"0123456789.eE-tfn\\u', max_size=60))
def test_any_bytes_are_json_or_refused_as_such(content: bytes | str) -> None:
    try:
        parse_json(content)
    except ValueError:
        return


# --- GGUF --------------------------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(keys: bytes = b"", tensors: bytes = b"", *, count: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *count) + keys + tensors


def key(kind: int, value: bytes) -> bytes:
    return text(b"k") + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], place: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, place)


BAD_GGUF: dict[str, bytes] = {
    "empty": b"",
    "another magic": gguf().replace(b"GGUF", b"GGML"),
    "another version": gguf(version=9),
    "keys without end": gguf(count=(0, 2**60)),
    "tensors without end": gguf(count=(2**60, 0)),
    "a text without end": gguf(key(8, struct.pack("<Q", 2**60)), count=(0, 1)),
    "a text beyond the file": gguf(key(8, struct.pack("<Q", 2**20)), count=(0, 1)),
    "a name beyond the file": gguf(struct.pack("<Q", 2**14), count=(0, 1)),
    "an array without end": gguf(key(9, struct.pack("<IQ", 0, 2**62)), count=(0, 1)),
    "an array beyond the file": gguf(key(9, struct.pack("<IQ", 4, 2**20)), count=(0, 1)),
    "arrays of arrays": gguf(key(9, struct.pack("<IQ", 9, 1) * 100), count=(0, 1)),
    "an unknown type": gguf(key(77, b"\0" * 8), count=(0, 1)),
    "many dimensions": gguf(tensors=tensor(b"t", (1,) * 100, 0), count=(1, 0)),
    "a tensor beyond the file": gguf(tensors=tensor(b"t", (2**40, 2**40), 0), count=(1, 0)),
    "a place beyond the file": gguf(tensors=tensor(b"t", (1,), 2**40), count=(1, 0)),
    "a tensor twice": gguf(tensors=tensor(b"t", (1,), 0) * 2, count=(2, 0)),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_a_gguf_header_that_lies_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(BAD_GGUF[name])
    with pytest.raises(UserError, match=r"x\.gguf is no whole GGUF file \(.+\)$"):
        checked_gguf(path)


def test_a_gguf_header_that_fits_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    values = key(8, text(b"hello")) + key(9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b")) + key(7, b"\1")
    path.write_bytes(gguf(values, tensor(b"t", (4, 2), 0), count=(1, 3)) + bytes(64))
    assert checked_gguf(path) == path


# --- links and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", "a\0b", "..\\x", 7, None])
def test_a_name_that_leads_out_of_its_folder_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file beside it"):
        beside(tmp_path, name)


def test_a_link_that_leads_out_of_its_folder_is_refused_but_in_the_hubs_cache(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    folder = tmp_path / "models--x" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--x" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (folder / "good.json").symlink_to("../../blobs/1234")
    (folder / "bad.json").symlink_to(secret)
    (folder / "round.json").symlink_to("../../blobs/../../secret")
    assert beside(folder, "good.json").read_text() == "{}"
    for name in ("bad.json", "round.json"):
        with pytest.raises(UserError, match="is a link that leads out of its folder"):
            beside(folder, name)


Check = Callable[[Path], Path]


@pytest.mark.parametrize("check", [checked_tensors, checked_gguf])
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(check: Check, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(content)
    with pytest.raises(UserError):
        check(path)
