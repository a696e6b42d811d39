"""Looks the machine over, so that surprises come now and not in hour three."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from leveret.config import cache_dir
from leveret.hardware.device import environment, pick_device, pick_dtype
from leveret.hardware.peak import peak_flops

EXTRAS = ("transformers", "lm_eval", "fastapi", "gguf", "openai")


def examine() -> Iterator[str]:
    """One line for each thing that was looked at."""
    device = pick_device()
    facts = environment(device)
    for name in ("leveret", "python", "torch", "tokenizers", "system", "device_name", "cpu_cores", "threads"):
        yield f"{name:<14} {facts[name]}"
    dtype = pick_dtype("auto", device)
    peak, source = peak_flops(device, dtype)
    yield f"{'computes on':<14} {device} in {str(dtype).removeprefix('torch.')}, {peak / 1e12:.2f} TFLOP/s ({source})"
    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    yield f"{'shards in':<14} {folder}, {shutil.disk_usage(there).free / 1e9:.0f} GB free"
    yield f"{'runs in':<14} runs/, {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free"
    found = [name for name in EXTRAS if importlib.util.find_spec(name)]
    yield f"{'extras':<14} {', '.join(found) or 'none'}"
