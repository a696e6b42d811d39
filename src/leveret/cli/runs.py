"""Verbs about runs: list them, show one's curves, compare two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from leveret.runs import RunStatus, StageStatus


class _ListsByDefault(TyperGroup):
    """`leveret runs` and `leveret runs DIR` are `leveret runs list DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if known else ["list", *args])


runs_app = typer.Typer(cls=_ListsByDefault, help="The runs there are: list them, show one, compare two.")

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE after it if wished.")]
COLOURS = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "red"}
COLUMNS = ("run", "state", "stage", "step", "loss", "val. loss", "time", "cost")
NAME_WIDTH = 20
"""Of a run's name, at most where room is short; it is wrapped then."""
CURVES = {
    "validation_bits_per_byte": "held-out bits per byte",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
}


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("runs"),
) -> None:
    """List the runs in a folder, with state, step, loss, time and cost."""
    from rich.table import Table

    from leveret.runs import runs_in

    found = runs_in(folder)
    if not found:
        print(f"no runs in {folder}")
        return
    rows = []
    for run in found:
        texts = [run.stage, *_figures(run.trained), *_spent(run.seconds, run.cost)]
        rows.append([_cell(run.name), _cell(run.state, COLOURS[run.state]), *map(_cell, texts)])
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    room = console.width
    for number, name in enumerate(COLUMNS):
        wide = max(len(name), *(len(row[number]) for row in rows))
        room -= min(wide, NAME_WIDTH) if number == 0 else wide + 2
        if room < 0:  # narrow: what is furthest to the right is left out
            break
        right = number > COLUMNS.index("stage")
        table.add_column(name, overflow="fold", no_wrap=number > 0, justify="right" if right else "left")
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    console.print(table)


def _cell(text: str, colour: str = "") -> Text:
    from rich.text import Text

    return Text(text, colour)


def _figures(stage: StageStatus | None) -> tuple[str, str, str]:
    if stage is None:
        return "", "", ""
    steps = _text(stage.step) + (f"/{stage.steps}" if stage.steps else "")
    return steps, _text(stage.loss), _text(stage.validation_loss)


def _spent(seconds: float | None, cost: float | None) -> tuple[str, str]:
    from leveret.display import duration

    return "" if seconds is None else duration(seconds), "" if cost is None else f"${cost:.2f}"


def _text(value: Any) -> str:
    """A figure in a cell."""
    if isinstance(value, int | float):
        return f"{value:.4f}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}"
    return "" if value is None else str(value)


@runs_app.command("show")
def show(run: Run) -> None:
    """Draw a run's curves in the terminal, and say how it is doing."""
    from leveret.runs import find, happened

    found, stage = find(run)
    console = _console()
    console.print(f"[bold]{found.name}[/] {found.path}", highlight=False)
    why = f": {found.why}" if found.why else ""
    console.print(f"[{COLOURS[found.state]}]{found.state}[/] at {found.stage or 'its beginning'}{why}", highlight=False)
    if stage is None:
        print("no figures yet")
        return
    step, loss, validation = _figures(stage)
    time, cost = _spent(stage.seconds, stage.cost)
    energy = "" if stage.energy_kwh is None else f"{stage.energy_kwh:.3g} kWh"
    told = {"step": step, "loss": loss, "validation loss": validation, "time": time, "energy": energy, "cost": cost}
    print(f"{stage.name}: " + ", ".join(f"{name} {value}" for name, value in told.items() if value))
    model = stage.summary.get("model_step")
    if model not in (None, stage.summary.get("steps")):
        early = "stopped early; " if stage.summary.get("stopped_early") else ""
        print(f"{early}the model is that of step {model}, which validated best")
    if counts := happened(found.path / stage.name):
        print("events: " + ", ".join(f"{kind} {count}" for kind, count in counts.items()))
    _draw(found.path / stage.name, console)


def _draw(folder: Path, console: Console) -> None:
    from rich.text import Text

    from leveret.curves import curve
    from leveret.training.metrics import read_metrics
    from leveret.training.plots import points

    rows = read_metrics(folder)
    width = max(min(console.width, 120), 20)
    loss, validation = points(rows, "loss"), points(rows, "validation_loss")
    pictures = [("loss (● validation)", loss, validation, 10)]
    pictures += [(name, points(rows, key), [], 4) for key, name in CURVES.items()]
    for title, line, single, height in pictures:
        if line or single:
            print()
            print(title)
            for text in curve(line, single, width, height):
                drawn = Text(text, no_wrap=True)
                drawn.highlight_regex("[⠀-⣿]+", "cyan")
                drawn.highlight_regex("●", "red")
                console.print(drawn)


@runs_app.command("compare")
def compare(a: Run, b: Run) -> None:
    """Two runs side by side: their figures, and the keys in which their recipes differ."""
    from rich.markup import escape
    from rich.table import Table

    from leveret.changes import changes
    from leveret.runs import compared, find, recipe_of

    first, second = find(a)[0], find(b)[0]
    differ = changes(recipe_of(first), recipe_of(second))
    for title, rows in (("", compared(first, second)), ("recipe", differ)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title)
        for run in (first, second):
            table.add_column(escape(_name(run, first, second)), overflow="fold", justify="left" if title else "right")
        for label, *pair in rows:
            table.add_row(label, *(escape(str(value) if title else _text(value)) for value in pair))
        _console().print(table)
        print()
    if not differ:
        print("their recipes are equal")


def _name(run: RunStatus, first: RunStatus, second: RunStatus) -> str:
    return run.name if first.name != second.name else str(run.path)


def _console() -> Console:
    """Standard output; characters that its encoding does not have are shown as question marks."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)
