"""How fast the device multiplies matrices: looked up by exact name, else measured, never guessed."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from leveret.hardware.device import device_name

TFLOPS = {
    "NVIDIA B200": 2250.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L20": 119.5,
    "NVIDIA L4": 121.0,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71.0,
}
"""TFLOP/s of products in bfloat16 and float16, summed in float32, without sparsity, by the driver's exact name.

From NVIDIA's datasheets of the H100, H200, A100, L40S, L20 and L4 and the DGX B200 (which tell them with sparsity, at
twice this), and for GeForce from the appendices of the Ampere GA102, Ada and Blackwell RTX architecture papers.
"""


@lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations a second, and where the figure is from ("datasheet" or "measured").

    Measured: the best of five products of two square matrices (1024 on a CPU, 8192 elsewhere) after a warm-up, or of as
    many as a second is enough for. The global random generators stay as they are.
    """
    if dtype in (torch.bfloat16, torch.float16) and (known := TFLOPS.get(device_name(device))):
        return known * 1e12, "datasheet"
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    seconds: list[float] = []
    while len(seconds) < 6 and sum(seconds) < 1:
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), "measured"


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
