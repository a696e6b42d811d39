"""`leveret quantize` on the tiny run: a form beside the checkpoint, which is used, and what was lost."""

import shutil
from pathlib import Path

import pytest
from tiny_project import ANSWER, Command, TinyRun


@pytest.fixture(scope="module")
def run(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny.path, tmp_path_factory.mktemp("quantised") / "tiny"))


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_run_is_packed_and_still_answers(leveret: Command, run: Path, bits: str) -> None:
    shown = leveret("quantize", run, "--to", bits, cwd=run.parent).stdout
    figures = {line[:24].strip(): line[24:].split() for line in shown.splitlines()[1:-2]}
    assert figures["exact, held"] == ["100.0%", "100.0%"]
    before, after = map(float, figures["loss"])
    assert abs(after - before) < 0.1
    (folder,) = (run / "finetune" / "quantised").glob(f"{bits}-*")
    assert shown.splitlines()[-2] == str(folder)
    assert (
        leveret("generate", run, "make the file of omega31", "--quantize", bits, cwd=run.parent).stdout.strip()
        == ANSWER
    )


def test_bits_per_byte_of_a_pretrained_model(leveret: Command, run: Path) -> None:
    shown = leveret("quantize", f"{run}/pretrain", cwd=run.parent).stdout
    before, after = (float(word) for word in shown.partition("bits per byte")[2].split()[:2])
    assert 0.9 * before < after < 1.1 * before


def test_what_it_cannot_pack_to_is_named(leveret: Command, run: Path) -> None:
    assert "int3 is not one of int8, int4" in leveret("quantize", run, "--to", "int3", cwd=run, exit_code=2).stderr
