"""What the run page shows: a run directory as one JSON object, whatever state it is in.

    recipe.yaml, state.json, locks --runs.status--> state
    STAGE/metrics.jsonl            --downsample--> curves
    events.jsonl, samples.md, evaluation/results.json, manifests, audit.json, environment.json

Everything only reads, and what is damaged or not there yet is left out.
"""

from __future__ import annotations

import re
import time
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from leveret.data.look import label
from leveret.rundir import read_object
from leveret.runs import RunStatus, StageStatus, recipe_of, status
from leveret.strangers.files import read_limited
from leveret.training import STAGES
from leveret.training.metrics import Row, read_events, read_metrics
from leveret.training.plots import LOSSES, PANELS, points

POINTS = 600
"""Most points of a curve that are sent; a chart is not wider."""
SAMPLES = 40
"""Newest samples of a stage that are sent."""
MOST_SAMPLES = 2**26
"""Bytes of a samples.md that is read."""
CURVES = ("loss", "validation_loss", *PANELS)
WATCHED = ("metrics.jsonl", "events.jsonl", "samples.md", "summary.json", "ledger.json", "evaluation/results.json")
FIGURES = ("tokens", "epochs", "train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "dtype")
"""What of summary.json is shown."""

Point = tuple[int, float]


class RunView:
    """Looks at a run, and reads it again only when something in it has changed.

    Args:
        path: of the run, which need not be there yet.
        share: of the time that reading may take: what took a second is not read again for the next 1 / share.
    """

    def __init__(self, path: Path, share: float = 0.05) -> None:
        self.path, self.share = path, share
        self._known: tuple[str, dict[str, Any]] | None = None
        self._rest = 0.0  # until when what is known will do
        self._alone = Lock()

    def read(self) -> tuple[str, dict[str, Any]]:
        """The run, facts of its state, then of each stage of training in order; and in front of it a tag that differs
        where the rest does."""
        with self._alone:
            if self._known is None or time.monotonic() >= self._rest:
                begun = time.monotonic()
                tag = self._tag()
                if self._known is None or self._known[0] != tag:
                    self._known = tag, self._read()
                now = time.monotonic()
                self._rest = now + (now - begun) / self.share
            return self._known

    def _tag(self) -> str:
        files = [self.path / name for name in ("recipe.yaml", "state.json", "audit.json", "data.json")]
        files += [self.path / stage / name for stage in STAGES for name in WATCHED]
        run = status(self.path)  # its locks leave no trace in the files
        return f'"{hash((run.state, run.stage, *map(_mark, files))):x}"'

    def _read(self) -> dict[str, Any]:
        run, recipe = status(self.path), recipe_of_run(self.path)
        state = read_object(self.path / "state.json").get("stages")
        found = {
            "name": str(recipe.get("name") or run.name),
            "description": str(recipe.get("description") or ""),
            "state": run.state,
            "stage": run.stage,
            "why": without_places(run.why),
            "seconds": run.seconds,
            "cost": run.cost,
            "steps": _steps_done(state if isinstance(state, dict) else {}),
            "stages": [_stage(self.path / name, stage) for name, stage in run.stages.items()],
            "data": [_data(name, folder) for name, folder in _shards(self.path).items()],
            "audit": _audit(read_object(self.path / "audit.json")),
            "environment": read_object(self.path / "environment.json"),
            "recipe": without_places(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)) if recipe else "",
        }
        return _finite(found)  # type: ignore[no-any-return]


def recipe_of_run(path: Path) -> dict[str, Any]:
    """The recipe as it stands in the run; empty where it is not readable."""
    return recipe_of(RunStatus(path, "", "", "", {}))


def without_places(text: str) -> str:
    """The text with absolute paths cut to their last name: where a machine keeps its files is nobody's business."""
    return re.sub(r"(?<![\w./~:])/(?:[^\s/'\",:]+/)+([^\s/'\",:]*)", r"…/\1", text)


def downsample(curve: list[Point], most: int = POINTS) -> list[Point]:
    """At most so many points of a curve: of each stretch of steps its lowest and its highest, so that no spike goes,
    with both ends. A value that is no number is left out."""
    curve = [point for point in curve if isfinite(point[1])]
    if len(curve) <= most:
        return curve
    inner, buckets = curve[1:-1], (most - 2) // 2
    kept = [curve[0]]
    for number in range(buckets):
        part = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, curve[-1]]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of samples.md: {"step", "texts"} each, the newest last."""
    try:
        text = read_limited(path, MOST_SAMPLES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return []
    parts = re.split(r"^## Step (\d+)$", text, flags=re.MULTILINE)
    found = [
        {"step": int(step), "texts": re.findall(r"```text\n(.*?)\n```\n\n(?=```text\n|\Z)", body, re.DOTALL)}
        for step, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return found[-SAMPLES:]


def _stage(folder: Path, stage: StageStatus) -> dict[str, Any]:
    rows = read_metrics(folder)
    curves = {key: downsample(points(rows, key)) for key in CURVES}
    panels = {key: (name, unit) for key, (name, unit) in PANELS.items() if curves[key]}
    return {
        "name": stage.name,
        "step": stage.step,
        "steps": stage.steps,
        "loss": stage.loss,
        "validation_loss": stage.validation_loss,
        "seconds": stage.seconds,
        "cost": stage.cost,
        "energy_kwh": stage.energy_kwh,
        "figures": {key: value for key in FIGURES if (value := _newest(rows, stage.summary, key)) is not None},
        "loss_label": LOSSES.get(stage.name, "loss (nats per token)"),
        "curves": {key: curves[key] for key in ("loss", "validation_loss") if curves[key]},
        "panels": [
            {"key": key, "label": name, "points": [(step, value / unit) for step, value in curves[key]]}
            for key, (name, unit) in panels.items()
        ],
        "events": [{"kind": str(event.get("kind")), "step": event["step"]} for event in read_events(folder)][-200:],
        "samples": read_samples(folder / "samples.md"),
        "evaluation": read_object(folder / "evaluation" / "results.json"),
    }


def _newest(rows: list[Row], summary: dict[str, Any], key: str) -> Any:
    """A figure of the finished stage, else of the newest step that tells it."""
    return summary.get(key, next((row[key] for row in reversed(rows) if key in row), None))


def _steps_done(stages: dict[str, Any]) -> list[dict[str, Any]]:
    """What the recipe went through: {"name", "finished", "seconds", "failed"} each, in order."""
    return [
        {
            "name": name,
            "finished": entry.get("finished"),
            "seconds": entry.get("seconds"),
            "failed": without_places(str(entry["failed"])) if entry.get("failed") else None,
        }
        for name, entry in stages.items()
        if isinstance(entry, dict)
    ]


def _shards(path: Path) -> dict[str, Path]:
    """The folders of shards by the stage that reads them; those of a run with its data inside are relative."""
    return {name: path / str(place) for name, place in read_object(path / "data.json").items()}


def _data(name: str, folder: Path) -> dict[str, Any]:
    """A manifest in short: its splits and sources. Only the stage's name where the shards are not here (any more)."""
    manifest = read_object(folder / "manifest.json")
    splits = manifest.get("splits", {})
    read = manifest.get("documents") or []
    revisions = [entry.get("revision") for entry in read]
    sources = [
        {
            "label": without_places(label(source)),
            "kind": source.get("kind"),
            "licence": source.get("licence"),
            "revision": source.get("revision") or (revisions[number] if number < len(revisions) else None),
            **{
                split: {key: entry[key] for key in ("documents", "tokens")}
                for split, facts in splits.items()
                for entry in facts.get("sources", [])
                if entry["source"] == number
            },
        }
        for number, source in enumerate(manifest.get("sources", []))
    ]
    return {
        "name": name,
        "sha256": manifest.get("manifest_sha256"),
        "tokenizer": manifest.get("tokenizer"),
        "sources": sources,
        "splits": {
            split: {
                **{key: facts.get(key) for key in ("documents", "tokens", "text_bytes")},
                "shards": len(facts.get("shards", [])),
            }
            for split, facts in splits.items()
        },
        "dropped": _dropped(manifest),
    }


def _dropped(manifest: dict[str, Any]) -> dict[str, int]:
    """How many documents each filter, the search for duplicates, and damage took."""
    total: dict[str, int] = {}
    for source in manifest.get("documents") or []:
        counts = {key: value.get("dropped", 0) for key, value in source.get("filters", {}).items()}
        counts |= {"unreadable": source.get("unreadable", {}).get("count", 0)}
        for key, count in counts.items():
            total[key] = total.get(key, 0) + count
    for kind, count in (manifest.get("duplicates") or {}).items():
        total[f"{kind} duplicates"] = count
    total["too long"] = (manifest.get("examples") or {}).get("too_long", 0)
    return {key: count for key, count in total.items() if count}


def _audit(facts: dict[str, Any]) -> dict[str, Any] | None:
    """How many held-out examples leak, out of how many; None where there are none."""
    if not facts.get("held_out"):
        return None
    leaks = sum(len(found) for found in facts.get("leaks", {}).values())
    return {"leaks": leaks, "held_out": facts.get("held_out", {}), "training_examples": facts.get("training_examples")}


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for, such as a loss that is not a number."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
