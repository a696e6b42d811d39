"""How fast the device multiplies matrices: looked up by exact name, else measured, never guessed."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from leveret.errors import UserError
from leveret.hardware.device import device_name


@dataclass(frozen=True)
class Gpu:
    """What is known of a GPU from paper.

    name: the driver's. alias: what a person calls it. tflops: see GPUS. memory_gib: as the driver tells it, rounded
    down.
    """

    name: str
    alias: str
    tflops: float
    memory_gib: int

    @property
    def chip(self) -> str:
        """GPUs of one chip differ in memory and form, and multiply at the same peak."""
        return f"{self.alias.partition('-')[0]} at {self.tflops:g}"


GPUS = (
    Gpu("NVIDIA B200", "b200", 2250.0, 178),
    Gpu("NVIDIA H200", "h200", 989.0, 139),
    Gpu("NVIDIA H100 80GB HBM3", "h100", 989.0, 79),
    Gpu("NVIDIA H100 PCIe", "h100-pcie", 756.0, 79),
    Gpu("NVIDIA A100-SXM4-40GB", "a100-40gb", 312.0, 39),
    Gpu("NVIDIA A100-SXM4-80GB", "a100-80gb", 312.0, 79),
    Gpu("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb", 312.0, 39),
    Gpu("NVIDIA A100 80GB PCIe", "a100-pcie-80gb", 312.0, 79),
    Gpu("NVIDIA L40S", "l40s", 362.0, 44),
    Gpu("NVIDIA L20", "l20", 119.5, 44),
    Gpu("NVIDIA L4", "l4", 121.0, 22),
    Gpu("NVIDIA GeForce RTX 5090", "rtx-5090", 209.5, 31),
    Gpu("NVIDIA GeForce RTX 4090", "rtx-4090", 165.2, 23),
    Gpu("NVIDIA GeForce RTX 3090", "rtx-3090", 71.0, 23),
)
"""TFLOP/s of products in bfloat16 and float16, summed in float32, without sparsity, by the driver's exact name.

From NVIDIA's datasheets of the H100, H200, A100, L40S, L20 and L4 and the DGX B200 (which tell them with sparsity, at
twice this), and for GeForce from the appendices of the Ampere GA102, Ada and Blackwell RTX architecture papers.
"""
TFLOPS = {gpu.name: gpu.tflops for gpu in GPUS}


def find_gpu(name: str) -> Gpu:
    """The GPU of that alias or the driver's name, in any case.

    Raises:
        UserError: there is none; the message has the nearest.
    """
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    by_name = {gpu.alias: gpu for gpu in GPUS} | {gpu.name.lower().replace(" ", "-"): gpu for gpu in GPUS}
    if wanted in by_name:
        return by_name[wanted]
    aliases = [gpu.alias for gpu in GPUS]
    begin = [alias for alias in aliases if alias.startswith(wanted) or alias.endswith(f"-{wanted}")]
    near = begin or difflib.get_close_matches(wanted, aliases, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(aliases)}"
    raise UserError(f"there is no GPU {name!r} in the table; {hint}")


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
