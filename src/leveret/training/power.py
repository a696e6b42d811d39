"""Energy, power and use of the device, where the hardware counts them. What it does not count is not guessed.

A GPU counts its own (NVML; the package nvidia-ml-py). Of a CPU, Linux shows what Intel's and AMD's processors count of
themselves (RAPL), which has in it whatever else they did, and is readable for the superuser only on most systems.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of processors."""


class Power:
    """What is read of a device.

    source: who counted the energy; None where nobody does.
    joules: spent since this object was made.
    """

    def __init__(self, device: torch.device) -> None:
        self.source: str | None = None
        self.joules = 0.0
        self.now: Callable[[], dict[str, Any]] = dict
        self.since_last: Callable[[], float] = float
        with suppress(Exception):  # no driver, no right, an old card: then it is not told
            if device.type == "cuda":
                gpu = Gpu(device)
                self.now, self.since_last, self.source = gpu.now, gpu.joules, "NVML: this GPU"
            elif device.type == "cpu":
                self.since_last = Processors(POWERCAP).joules
                self.source = "RAPL: the machine's processors, whatever else they did"

    def read(self) -> dict[str, Any]:
        """What the device does now (for GPUs: gpu_memory_bytes of all processes, gpu_utilisation, power_watts); the
        energy since the last reading is added to joules. Costs about a millisecond."""
        try:
            self.joules += self.since_last()
            return self.now()
        except Exception:  # a driver that goes away stops nothing but this
            self.now, self.since_last = dict, float
            return {}


class Gpu:
    """One GPU through NVML, the one that torch calls by this index."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self.last = self._counter()

    def _counter(self) -> float:
        """Joules since the driver was loaded; from Volta on."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3

    def joules(self) -> float:
        before, self.last = self.last, self._counter()
        return max(self.last - before, 0.0)

    def now(self) -> dict[str, Any]:
        return {
            "gpu_memory_bytes": int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used),
            "gpu_utilisation": self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100,
            "power_watts": self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3,
        }


class Processors:
    """The counters of whole processors, each of which begins again at its end, after an hour or so of full load."""

    def __init__(self, folder: Path) -> None:
        found = sorted(path.parent for path in folder.glob("intel-rapl:*/energy_uj"))
        names = [path for path in found if (path / "name").read_text().startswith("package")]  # the others are parts
        if not names:
            raise OSError(f"no counters in {folder}")
        self.ranges = {path: int((path / "max_energy_range_uj").read_text()) for path in names}
        self.last = self._counters()

    def _counters(self) -> dict[Path, int]:
        return {path: int((path / "energy_uj").read_text()) for path in self.ranges}

    def joules(self) -> float:
        before, self.last = self.last, self._counters()
        spent = {path: value - before[path] for path, value in self.last.items()}
        return sum(value if value >= 0 else value + self.ranges[path] for path, value in spent.items()) / 1e6
