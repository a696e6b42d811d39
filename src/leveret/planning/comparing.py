"""Several plans side by side: what is compared, and the picture of loss against dollars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from leveret.errors import UserError
from leveret.planning.machines import Place
from leveret.planning.plan import Plan, Wish, count, make_plan, read_count

NUMBERS = {"budget": "budget", "hours": "hours", "tokens": "tokens", "params": "params", "data-tokens": "data_tokens"}
"""What --compare takes numbers for, and the field of Wish."""
KEYS = (*NUMBERS, "recipe", "fit", "gpu", "gpus")
COLOURS = ("#3b6ea5", "#c44e52", "#55785a", "#8a63a8", "#e08a1e", "#4a4a4a")


@dataclass(frozen=True)
class Variant:
    """A plan of several, or why there is none. label: what is particular to it."""

    label: str
    gpu: str
    plan: Plan | None
    refused: str


def compare(
    wish: Wish, gpus: Sequence[str], number: int, wanted: Sequence[str], place: Callable[[str, int], Place]
) -> list[Variant]:
    """A plan for every combination of what is compared.

    Args:
        gpus: names. number: of them on each node. wanted: "key=value,value". place: finds a GPU by name and number.

    Raises:
        UserError: something wanted is not understood, or not one plan is possible.
    """
    axes: dict[str, list[str]] = {"gpu": list(gpus), "gpus": [str(number)]}
    for each in wanted:
        key, equals, values = each.partition("=")
        if not equals or key not in KEYS or not values:
            raise UserError(
                f"--compare {each!r} is not understood; write budget=20,55,200, with one of {', '.join(KEYS)}"
            )
        axes[key] = [value.strip() for value in values.split(",")]
    variants = []
    varied = [key for key, values in axes.items() if len(values) > 1]
    for combination in product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        changes: dict[str, Any] = {NUMBERS[key]: read_count(chosen[key]) for key in NUMBERS if key in chosen}
        changes |= {key: chosen[key] for key in ("recipe", "fit") if key in chosen}
        label = " ".join(_said(key, chosen[key]) for key in varied) or chosen["gpu"]
        there = place(chosen["gpu"], int(read_count(chosen["gpus"])))
        try:
            variants.append(Variant(label, chosen["gpu"], make_plan(replace(wish, **changes), there), ""))
        except UserError as error:
            variants.append(Variant(label, chosen["gpu"], None, str(error)))
    if all(variant.plan is None for variant in variants):
        raise UserError(variants[0].refused)
    return variants


def _said(key: str, value: str) -> str:
    if key == "budget":
        return f"${value}"
    units = {"hours": "h", "tokens": "tokens", "params": "parameters", "data-tokens": "of text", "gpus": "GPUs"}
    return f"{value} {units[key]}" if key in units else value


def draw(variants: Sequence[Variant], path: Path) -> None:
    """Expected loss with its band against dollars (or hours, where a price is not known), as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    made = [(variant, variant.plan) for variant in variants if variant.plan is not None]
    priced = all(plan.cost.dollars for _, plan in made)
    every = [(plan.cost.dollars or 0.0) if priced else plan.cost.seconds / 3600 for _, plan in made]
    middle = (min(every) * max(every)) ** 0.5
    with plt.style.context("seaborn-v0_8-whitegrid"):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        for number, gpu in enumerate(dict.fromkeys(variant.gpu for variant, _ in made)):
            own = [(variant, plan) for variant, plan in made if variant.gpu == gpu]
            aside = 1.05**number  # so that the bands of several GPUs for one price do not hide each other
            spent = [aside * (plan.cost.dollars or 0.0 if priced else plan.cost.seconds / 3600) for _, plan in own]
            losses, bands = [plan.expected for _, plan in own], [plan.band for _, plan in own]
            axes.errorbar(
                spent, losses, yerr=bands, fmt="o", color=COLOURS[number % len(COLOURS)], capsize=4, markersize=6,
                elinewidth=1.2, label=gpu,
            )  # fmt: skip
            for (variant, plan), across, loss in zip(own, spent, losses, strict=True):
                text = f"{variant.label}\n{count(plan.shape.parameters)}, {count(plan.cost.tokens)} tokens"
                left = across > middle
                axes.annotate(
                    text, (across, loss), xytext=(-7 if left else 7, 5), textcoords="offset points", fontsize=7.5,
                    ha="right" if left else "left", zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
                )  # fmt: skip
        axes.set_xscale("log")
        _whole_ticks(axes)
        room = 1.5 if max(every) > 2 * min(every) else 3.0
        axes.set_xlim(min(every) / room, max(every) * room)
        apart = "" if len({variant.gpu for variant, _ in made}) == 1 else " (further GPUs are drawn 5% to the right)"
        axes.set(xlabel=("dollars" if priced else "hours") + apart, ylabel="expected loss (nats per token)")
        axes.legend(frameon=True, fontsize="small", loc="best")
        axes.set_title("expected loss, 80% bands", fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight", format="png")
        plt.close(figure)


def _whole_ticks(axes: Any) -> None:
    """A logarithmic axis with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
