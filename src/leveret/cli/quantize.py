"""The verb that packs a model's weights."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from leveret.cli.options import Device, RunName
from leveret.errors import UserError


def quantize(
    run: RunName,
    bits: Annotated[str, typer.Option("--to", help="int8 or int4.")] = "int8",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples of each held-out set.")] = None,
    device: Device = "auto",
) -> None:
    """Pack a model's weights into 8 or 4 bits, beside its checkpoint, and show what is lost."""
    from leveret.inference.quantize import Quantisation
    from leveret.stages import quantise_reference

    if bits not in get_args(Quantisation):
        raise UserError(f"--to {bits} is not one of {', '.join(get_args(Quantisation))}")
    folder, quality = quantise_reference(run, cast(Quantisation, bits), limit, device)
    before, after = quality["before"], quality["after"]
    lines = [("weights", f"{before['bytes'] / 1e6:.1f} MB", f"{after['bytes'] / 1e6:.1f} MB")]
    for key in ("bits_per_byte", "loss"):
        if key in before["loss"]:
            lines.append((key.replace("_", " "), f"{before['loss'][key]:.4f}", f"{after['loss'][key]:.4f}"))
    for name, figures in before["sets"].items():
        lines.append((f"exact, {name}", f"{figures['accuracy']:.1%}", f"{after['sets'][name]['accuracy']:.1%}"))
    print(f"{'':<24}{'before':>12}{bits:>12}")
    for name, old, new in lines:
        print(f"{name:<24}{old:>12}{new:>12}")
    print(f"{folder}\nleveret generate {run} PROMPT --quantize {bits}")
