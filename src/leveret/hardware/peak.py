"""How fast the device multiplies matrices: looked up by exact name, else measured, never guessed."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from leveret.hardware.device import device_name

BF16_TFLOPS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L20": 119.5,
    "NVIDIA L4": 121.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71.0,
}
"""Dense bfloat16 TFLOP/s with float32 accumulation, from the makers' datasheets."""


@lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations a second, and where the figure is from ("datasheet" or "measured").

    Measured: the best of five products of two square matrices (1024 on a CPU, 8192 elsewhere), after a warm-up.
    """
    if dtype is torch.bfloat16 and (known := BF16_TFLOPS.get(device_name(device))):
        return known * 1e12, "datasheet"
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, "measured"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
