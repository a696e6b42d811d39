"""How much memory there is, and what running out of it looks like."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leveret.hardware import memory
from leveret.hardware.memory import available_memory, is_out_of_memory

CPU = torch.device("cpu")


def test_available_memory_is_some_of_this_machines() -> None:
    available = available_memory(CPU)
    assert available is not None
    assert 10_000_000 < available < 2**50


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = available_memory(CPU)
    assert unlimited is not None
    (tmp_path / "memory.stat").write_text("anon 3000000\nfile 9000000\n")
    (tmp_path / "memory.max").write_text("5000000\n")
    assert available_memory(CPU) == 2_000_000, "pages of files give way"
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(CPU) == pytest.approx(unlimited, rel=0.5)


def test_the_peak_grows_with_what_is_held() -> None:
    """In a process of its own, for which what its starter holds does not count."""
    ours = torch.ones(200_000_000)
    script = """if True:
        import torch
        from leveret.hardware.memory import peak_memory
        before = peak_memory(torch.device("cpu"))
        held = torch.ones(50_000_000)
        print(peak_memory(torch.device("cpu")) - before)
    """
    grown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert 150_000_000 < int(grown) < 300_000_000
    assert ours.sum() > 0


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory of past days"), False),
    ],
)
def test_running_out_is_told_from_other_errors(error: BaseException, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
