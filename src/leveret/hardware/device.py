"""Which device and precision to compute with, and what the machine is."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from typing import Any

import torch

from leveret.errors import UserError
from leveret.hardware.config import Precision


def pick_device(wanted: str = "auto") -> torch.device:
    """The wanted device, or for "auto" the first of CUDA, MPS, CPU.

    Raises:
        UserError: the wanted device is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""By precision. In fp8 the blocks' products are float8's (training/float8.py), and everything else bfloat16's."""


def pick_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products.

    auto: bfloat16 where the hardware multiplies in it, float16 on a GPU that is older, else float32.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


@lru_cache(maxsize=8)
def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products, so that they are faster than float32's."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def device_name(device: torch.device) -> str:
    """The hardware's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides the recipe: versions, hardware, threads."""
    import numpy
    import tokenizers

    from leveret import __version__

    return {
        "leveret": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
        "system": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
