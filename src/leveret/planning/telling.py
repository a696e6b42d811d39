"""A plan in words and in JSON, and a table of several, for any width of terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from leveret.display import duration
from leveret.planning.comparing import Variant
from leveret.planning.describe import size_of
from leveret.planning.laws import MOST_EPOCHS
from leveret.planning.plan import Plan, count

LABEL = 13
"""Columns of the labels on the left."""
NARROW = 50
"""Columns below which what belongs to a label goes below it."""


def render(plan: Plan, width: int) -> str:
    """The plan as lines that fit into so many columns."""
    lines = []
    for label, text in _facts(plan):
        if width < NARROW:
            lines += [label, *textwrap.wrap(text, max(width - 2, 10), initial_indent="  ", subsequent_indent="  ")]
        else:
            indent = " " * (LABEL + 1)
            wrapped = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
            lines += [f"{label:<{LABEL}} {wrapped[0].strip()}", *wrapped[1:]]
    return "\n".join(lines)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    shape, cost, machine = plan.shape, plan.cost, plan.machine
    model, config, memory = shape.model, shape.config, plan.cost.memory
    optimizer, schedule = config.optimizer, config.schedule
    rates = f"{optimizer.kind}, rate {optimizer.lr:g}"
    rates += f" (matrices {optimizer.muon_lr:g})" if optimizer.kind == "muon" and optimizer.muon_lr else ""
    peak = machine.peak_flops / 1e12
    several = f"{machine.gpus} x " if machine.gpus > 1 else ""
    low, high = cost.seconds_range
    parts = ", ".join(f"{part} {size_of(size)}" for part, size in memory.items() if part != "total" and size)
    room = "" if machine.memory_bytes is None else f" of {size_of(machine.memory_bytes)}"
    rows = [
        ("recipe", f"{shape.recipe.name}: {shape.recipe.description}"),
        ("model", f"{count(shape.parameters)} parameters: {model.num_hidden_layers} layers, {model.hidden_size} wide, "
                  f"{model.num_attention_heads} heads, feed-forward {model.intermediate_size}, "
                  f"context {model.max_position_embeddings}, vocabulary {model.vocabulary:,}"),
        ("data", _data(plan)),
        ("training", f"{plan.steps:,} steps of {config.batch_size * shape.length:,} tokens ({config.batch_size} rows); "
                     f"{rates}; {schedule.kind}"),
        ("work", f"{cost.flops:.3g} FLOPs, {shape.flops / 1e6:,.0f} million a token"),
        ("speed", f"{cost.tokens / cost.seconds:,.0f} tokens/s: {machine.mfu:.0%} of {several}{peak:g} TFLOP/s; "
                  f"{machine.mfu_source}"),
        ("time", duration(cost.seconds) + ("" if low == high else f" (80%: {duration(low)} to {duration(high)})")),
        ("cost", _cost(plan)),
        ("memory", f"{size_of(memory['total'])}{room} on {machine.gpu}, {cost.micro_batch_size} rows at once: {parts}"),
        ("checkpoints", f"at most {size_of(plan.checkpoint_bytes)} on disk"),
        ("loss", f"{plan.expected:.2f} nats per token, give or take {plan.band:.2f} (80%): {_source(plan)}"),
    ]  # fmt: skip
    if plan.bits_per_byte:
        band = plan.bits_per_byte * plan.band / plan.expected
        rows.append(("bits per byte", f"{plan.bits_per_byte:.3f}, give or take {band:.3f}"))
    return rows + [("note", note) for note in plan.notes]


def _data(plan: Plan) -> str:
    read = f"{count(plan.cost.tokens)} tokens"
    if plan.unique and plan.cost.tokens > 1.05 * plan.unique:
        read += f", {plan.epochs:.1f} passes over {count(plan.unique)} (at most {MOST_EPOCHS} are advised)"
    text = "" if plan.data_bytes is None else f"about {size_of(plan.data_bytes)} of text, "
    return f"{read}; to prepare: {text}{size_of(plan.shard_bytes)} of shards"


def _cost(plan: Plan) -> str:
    cost, place = plan.cost, plan.place
    if cost.dollars is None or cost.dollars_range is None:
        return f"not known: no price of {place.gpu.alias} (--price)"
    low, high = cost.dollars_range
    band = "" if low == high else f" (80%: ${low:,.2f} to ${high:,.2f})"
    return f"${cost.dollars:,.2f}{band} at ${place.price:g} an hour for each GPU; {place.price_source}"


def _source(plan: Plan) -> str:
    return f"{plan.fit.name}, {plan.fit.source}" + ("" if plan.fit.calibrated else "; not calibrated for this corpus")


def facts(plan: Plan) -> dict[str, Any]:
    """The plan for JSON. Bytes, seconds, dollars, nats."""
    shape, cost, machine = plan.shape, plan.cost, plan.machine
    config = shape.config
    return {
        "format_version": 1,
        "name": shape.recipe.name,
        "parameters": shape.parameters,
        "model": shape.model.model_dump(mode="json"),
        "stage": shape.stage,
        "tokens": cost.tokens,
        "unique_tokens": plan.unique,
        "epochs": plan.epochs,
        "steps": plan.steps,
        "batch_size": config.batch_size,
        "tokens_per_step": config.batch_size * shape.length,
        "optimizer": config.optimizer.model_dump(mode="json"),
        "schedule": config.schedule.model_dump(mode="json"),
        "flops": cost.flops,
        "flops_per_token": shape.flops,
        "gpu": machine.gpu,
        "gpus": machine.gpus,
        "nodes": machine.nodes,
        "mfu": machine.mfu,
        "mfu_range": machine.mfu_range,
        "mfu_source": machine.mfu_source,
        "tokens_per_second": cost.tokens / cost.seconds,
        "seconds": cost.seconds,
        "seconds_range": cost.seconds_range,
        "price_hour": plan.place.price,
        "price_source": plan.place.price_source,
        "dollars": cost.dollars,
        "dollars_range": cost.dollars_range,
        "memory_bytes": cost.memory,
        "micro_batch_size": cost.micro_batch_size,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "data_bytes": plan.data_bytes,
        "shard_bytes": plan.shard_bytes,
        "loss": plan.expected,
        "loss_band": plan.band,
        "loss_source": f"{plan.fit.name}: {plan.fit.source}",
        "calibrated": plan.fit.calibrated,
        "bits_per_byte": plan.bits_per_byte,
        "notes": plan.notes,
    }


COLUMNS = ("", "parameters", "tokens", "passes", "hours", "cost", "80%", "loss", "memory", "bits/byte")


def table(variants: Sequence[Variant], width: int) -> str:
    """The variants that are possible, in as many columns as there is room for; below them why the others are not."""
    rows = [list(COLUMNS)] + [_row(variant.label, variant.plan) for variant in variants if variant.plan is not None]
    if not any(row[5] for row in rows[1:]):
        rows = [row[:5] + row[7:] for row in rows]
    wide = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    while len(wide) > 2 and sum(wide) + 2 * (len(wide) - 1) > width:
        wide.pop()
    lines = []
    for row in rows:
        cells = [row[0].ljust(wide[0]), *(cell.rjust(room) for cell, room in zip(row[1:], wide[1:], strict=False))]
        lines.append("  ".join(cells).rstrip())
    for variant in variants:
        if variant.plan is None:
            lines += textwrap.wrap(f"{variant.label}: {variant.refused}", width, subsequent_indent="  ")
    return "\n".join(lines)


def _row(label: str, plan: Plan) -> list[str]:
    cost = plan.cost
    low, high = cost.dollars_range or (0.0, 0.0)
    return [
        label,
        count(plan.shape.parameters),
        count(cost.tokens),
        f"{plan.epochs:.1f}" if plan.epochs > 1.05 else "1",
        f"{cost.seconds / 3600:,.1f}",
        "" if cost.dollars is None else f"${cost.dollars:,.2f}",
        "" if low == high else f"${low:,.0f} to ${high:,.0f}",
        f"{plan.expected:.2f} ± {plan.band:.2f}",
        size_of(cost.memory["total"]),
        "" if not plan.bits_per_byte else f"{plan.bits_per_byte:.3f}",
    ]
