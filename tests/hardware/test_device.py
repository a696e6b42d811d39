"""What the machine is, and how fast."""

import json

import pytest
import torch

from leveret.errors import UserError
from leveret.hardware import device, peak
from leveret.hardware.device import device_name, environment, has_bfloat16, pick_device, pick_dtype
from leveret.hardware.peak import peak_flops

CPU = torch.device("cpu")


def test_auto_takes_the_best_there_is() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == best
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["banana", "cpu:x", "", "cuda:77"])
def test_a_device_that_is_not_there_is_a_user_error(wanted: str) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        pick_device(wanted)


def test_dtype() -> None:
    assert pick_dtype("fp32", CPU) is torch.float32
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert pick_dtype("fp16", CPU) is torch.float16
    assert pick_dtype("fp8", CPU) is torch.bfloat16  # around the blocks' float8
    assert pick_dtype("auto", CPU) is (torch.bfloat16 if has_bfloat16(CPU) else torch.float32)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda", (8, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),
        ("mps", None, torch.float32),
    ],
)
def test_auto_goes_by_what_the_hardware_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, kind: str, capability: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(device, "has_bfloat16", has_bfloat16.__wrapped__)
    assert pick_dtype("auto", torch.device(kind)) is dtype


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [({"avx2": True, "avx512": True}, False), ({"avx512_bf16": True}, True), ({"bf16": True, "sve": True}, True)],
)
def test_bfloat16_needs_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16.__wrapped__(CPU) is has


def test_a_measured_peak_is_one_that_the_machine_reaches() -> None:
    flops, source = peak_flops(CPU, torch.float32)
    assert source == "measured"
    assert 1e9 < flops < 1e14
    assert peak_flops(CPU, torch.float32) == (flops, source)  # measured once


def test_a_known_device_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_flops.__wrapped__(CPU, torch.bfloat16) == (312e12, "datasheet")
    assert peak_flops.__wrapped__(CPU, torch.float16) == (312e12, "datasheet")
    assert peak_flops.__wrapped__(CPU, torch.float32)[1] == "measured"  # the table is of 16 bits


def test_measuring_draws_no_random_numbers() -> None:
    """A run that is resumed measures again, and must find its generator where it left it."""
    before = torch.get_rng_state()
    peak_flops.__wrapped__(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_that_only_resembles_a_known_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "device_name", lambda device: "NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    assert peak_flops.__wrapped__(CPU, torch.bfloat16)[1] == "measured"


def test_environment() -> None:
    found = environment(CPU)
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["device_name"] == device_name(CPU) != ""
    assert found["threads"] >= 1
