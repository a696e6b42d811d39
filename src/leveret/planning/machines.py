"""The machine that a plan is for: a GPU's figures from the tables, with its price, or the machine at hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from leveret.errors import UserError
from leveret.hardware.device import device_name, pick_device, pick_dtype
from leveret.hardware.memory import available_memory
from leveret.hardware.peak import GPUS, Gpu, find_gpu, peak_flops
from leveret.hardware.prices import read_prices
from leveret.planning.cost import Machine
from leveret.planning.speeds import Row, Speed, find_speed, read_speeds

HERE = "here"
"""The name of the machine at hand."""


@dataclass(frozen=True)
class Place:
    """Where a plan runs, before it is known how fast the model will be there.

    gpus: of all nodes. price: dollars an hour of one device, with price_source. mfu: what the user says. rows: measured
    speeds. kind: of device, as torch has it.
    """

    gpu: Gpu
    gpus: int = 1
    nodes: int = 1
    memory_bytes: int | None = None
    price: float | None = None
    price_source: str = ""
    mfu: float | None = None
    kind: str = "cuda"
    rows: list[Row] = field(default_factory=list)

    def machine(self, flops_per_token: float) -> Machine:
        """For a model of so much work for a token.

        Raises:
            UserError: nobody knows how fast such a model is there.
        """
        if self.mfu is None:
            speed = find_speed(self.gpu, flops_per_token, self.rows)
        else:
            speed = Speed(self.mfu, self.mfu, self.mfu, "you say so (--mfu)", True)
        return Machine(
            self.gpu.alias, self.gpus, self.gpu.tflops * 1e12, self.memory_bytes, self.price, speed.mfu, speed.source,
            (speed.low, speed.high), self.nodes, self.kind,
        )  # fmt: skip


def find_place(
    gpu: str,
    gpus: int = 1,
    nodes: int = 1,
    price: float | None = None,
    mfu: float | None = None,
    prices: Path | None = None,
) -> Place:
    """The place of that name, or with HERE this machine.

    Args:
        gpus: on each node.
        price: dollars an hour of one device; None: from the list of prices.
        prices: the list, in place of the user's or ours.

    Raises:
        UserError: there is no such GPU, or the list of prices is none.
    """
    rows = read_speeds()
    if gpu == HERE:
        place = _here()
    else:
        found = find_gpu(gpu)
        place = Place(found, memory_bytes=found.memory_gib * 2**30)
    place = replace(place, gpus=gpus * nodes, nodes=nodes, mfu=mfu, rows=rows)
    if price is not None:
        return replace(place, price=price, price_source="you say so (--price)")
    asked = read_prices(prices).prices.get(place.gpu.alias)
    if asked is None:
        return place
    return replace(place, price=asked.dollars_an_hour, price_source=f"{asked.source}; {asked.date}")


def _here() -> Place:
    """This machine: a GPU of the table by its exact name, else what it is with its peak measured."""
    device = pick_device()
    name = device_name(device)
    known = next((gpu for gpu in GPUS if gpu.name == name), None)
    if known is None:
        peak, _ = peak_flops(device, pick_dtype("auto", device))
        known = Gpu(name, name, peak / 1e12, 0)
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else available_memory(device)
    return Place(known, memory_bytes=memory, kind=device.type)


def need_price(place: Place) -> float:
    """The price of a place.

    Raises:
        UserError: nobody knows it.
    """
    if place.price is None:
        raise UserError(f"no price of a {place.gpu.alias} is known; say dollars an hour with --price, or give --hours")
    return place.price
