"""comparison.md, comparison.json, the pictures and the logs of a comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leveret.evaluation.calibration import plot_reliability
from leveret.evaluation.comparison import Comparison, metric_of
from leveret.evaluation.exact_match import write_rows

COLOURS = ("#6b9dc2", "#c44e52", "#55785a", "#8a63a8", "#e08a1e", "#5c5c5c", "#b07c5a", "#3f7f93", "#c27ba0", "#9a9a3c")

Facts = Mapping[str, Any]


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Writes everything; returns comparison.md."""
    facts = comparison.facts
    folder.mkdir(parents=True, exist_ok=True)
    for name, tasks in comparison.rows.items():
        for task, rows in tasks.items():
            write_rows(folder / "answers" / _file(name) / f"{_file(task)}.jsonl", rows)
    pictures = _plot(facts, folder)
    text = to_markdown(facts, pictures)
    (folder / "comparison.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "comparison.md").write_text(text, "utf-8")
    return text


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def to_markdown(facts: Facts, pictures: Sequence[str] = ()) -> str:
    """What was found, in tables."""
    protocol, models = facts["protocol"], facts["models"]
    limit = protocol["limit"]
    first = "" if limit is None else f", the first {limit:,} questions of each task and documents"
    parts = [
        "# Comparison",
        f"{len(models)} models, zero-shot, prompts and scores as {protocol['prompts']}, protocol {protocol['version']}"
        f", {protocol['dtype']}{first}. Brackets are 95% intervals.",
        _models(models),
        *_tasks(models),
        *_pairs(facts["pairs"]),
        *_text(models, facts["pairs"]),
        *_calibration(models),
        *_generation(models),
        *[f"![{Path(name).stem}]({name})" for name in pictures],
        *_failures(facts["failures"]),
        *_published(facts["published"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table, its first columns to the left and the figures to the right."""
    ways = [":--"] * texts + ["--:"] * (len(header) - texts)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, ways, *rows)
    )


def _share(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} ({interval[0] * 100:.1f} to {interval[1] * 100:.1f})"


def _points(value: float, interval: Sequence[float]) -> str:
    """A difference in percentage points."""
    return f"{value * 100:+.1f} ({interval[0] * 100:+.1f} to {interval[1] * 100:+.1f})"


def _models(models: Facts) -> str:
    rows = [
        [
            name,
            f"{each['reference'].partition('@')[0]}{'@' + each['revision'][:12] if each['revision'] else ''}",
            each["weights_sha256"][:12],
            each["computed_by"],
            f"{each['parameters']:,}",
            f"{each['context']:,}",
        ]
        for name, each in models.items()
    ]
    return _table(["model", "from", "weights", "computed by", "parameters", "context"], rows, 4)


def _tasks(models: Facts) -> list[str]:
    tasks = next(iter(models.values()))["tasks"]
    if not tasks:
        return []
    rows = []
    for task, figures in tasks.items():
        metric = metric_of(figures)
        cells = [
            _share(each["tasks"][task][metric], each["tasks"][task][f"{metric}_interval_95"])
            for each in models.values()
        ]
        chance = f"{figures['chance']:.0%}" if "chance" in figures else ""
        rows.append([task, metric, f"{figures['n']:,}", *cells, chance])
    means = [_mean(each["tasks"]) for each in models.values()]
    rows.append(["mean of tasks", "", "", *[f"{mean:.1%}" for mean in means], ""])
    return ["## Tasks", _table(["task", "metric", "questions", *models, "by guessing"], rows, 2)]


def _mean(tasks: Facts) -> float:
    return sum(float(figures[metric_of(figures)]) for figures in tasks.values()) / len(tasks)


def _pairs(pairs: Sequence[Facts]) -> list[str]:
    """Who wins against whom, and by how much."""
    pairs = [pair for pair in pairs if "tasks" in pair]
    if not pairs:
        return []
    rows, apart = [], []
    for pair in pairs:
        total, wins, losses = (sum(task[key] for task in pair["tasks"].values()) for key in ("n", "wins", "losses"))
        clear = pair["clear"]
        rows.append(
            [
                f"{pair['a']} against {pair['b']}",
                f"{pair['won']} of {len(pair['tasks'])}" + (f", {pair['tied']} tied" if pair["tied"] else ""),
                f"{clear['won']}, {clear['lost']}",
                f"{wins / total:.1%}",
                f"{1 - (wins + losses) / total:.1%}",
                f"{losses / total:.1%}",
                _points(pair["mean"]["difference"], pair["mean"]["interval_95"]),
            ]
        )
        apart.append([rows[-1][0], *[_points(t["difference"], t["interval_95"]) for t in pair["tasks"].values()]])
    header = ["", "tasks won", "of these clearly: won, lost", "only first right", "equal", "only second right"]
    note = (
        "Questions that one answers rightly and the other not, of all tasks together. Clearly: the interval leaves "
        "0 out. Differences are in percentage points, first less second, with paired bootstrap intervals: the same "
        "questions are drawn again for both (Efron and Tibshirani, 1993; Koehn, 2004). With many pairs and tasks, one "
        "interval of 20 leaves 0 out by chance."
    )
    return [
        "## Pairs",
        _table([*header, "mean difference"], rows),
        _table(["difference", *pairs[0]["tasks"]], apart),
        note,
    ]


def _text(models: Facts, pairs: Sequence[Facts]) -> list[str]:
    known = {name: each["text"] for name, each in models.items() if each["text"]}
    if not known:
        return []
    first = next(iter(known.values()))
    rows = [
        [
            name,
            f"{each['bits_per_byte']:.4f} ({each['interval_95'][0]:.4f} to {each['interval_95'][1]:.4f})",
            f"{each['tokens']:,}",
            f"{each['loss']:.4f}",
            f"{each['perplexity']:.2f}",
            *[f"{each['by_source'][source]['bits_per_byte']:.4f}" for source in first.get("by_source", {})],
        ]
        for name, each in known.items()
    ]
    header = ["model", "bits a byte", "tokens", "loss", "perplexity", *first.get("by_source", {})]
    apart = []
    for pair in (pair for pair in pairs if "text" in pair):
        low, high = pair["text"]["interval_95"]
        cell = f"{pair['text']['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        apart.append([f"{pair['a']} less {pair['b']}", cell])
    note = (
        f"{first['documents']:,} documents, {first['bytes']:,} bytes, in windows of each model's context; intervals "
        "are over documents. Loss (nats) and perplexity are by the model's own tokens: compare bits a byte."
    )
    return ["## Held-out text", _table(header, rows), *([_table(["", "bits a byte"], apart)] if apart else []), note]


def _calibration(models: Facts) -> list[str]:
    rows = [
        [name, f"{known['n']:,}", f"{known['ece']:.3f}", f"{known['belief']:.1%}", f"{known['accuracy']:.1%}"]
        for name, each in models.items()
        if (known := each["calibration"])
    ]
    if not rows:
        return []
    note = (
        "Belief: the chosen answer's share of the choices' probability, by acc. Expected calibration error over ten "
        "bins of equally many questions (Guo et al., 2017)."
    )
    return ["## Calibration", _table(["model", "questions", "error", "mean belief", "share right"], rows), note]


def _generation(models: Facts) -> list[str]:
    rows = []
    for name, each in models.items():
        for task, figures in each["tasks"].items():
            if known := figures.get("generation"):
                repeated = "" if known["rep_4"] is None else f"{known['rep_4']:.1%}"
                shares = [f"{known[key]:.1%}" for key in ("ended", "empty", "loops")]
                rows.append([name, task, f"{known['tokens']:.1f}", repeated, *shares])
    header = ["model", "task", "mean tokens", "rep-4", "ended", "empty", "loops"]
    return ["## Answers", _table(header, rows, 2)] if rows else []


def _failures(failures: Sequence[Facts]) -> list[str]:
    return ["## Left out", "\n".join(f"- {each['model']}: {each['why']}" for each in failures)] if failures else []


def _published(known: Sequence[Facts]) -> list[str]:
    """What others measured, by itself."""
    if not known:
        return []
    tasks = list(dict.fromkeys(task for each in known for task in each["figures"]))
    rows = [
        [
            each["name"],
            str(each["tokens"]),
            *[f"{each['figures'][t]:.1f}" if t in each["figures"] else "" for t in tasks],
        ]
        for each in known
    ]
    sources = "\n".join(f"- {each['name']}: {each['protocol']}. Source: {each['source']}." for each in known)
    note = (
        "Not measured here, and under other protocols, which are told below; not to be compared with the tables above."
    )
    return ["## Published figures, not measured here", note, _table(["model", "trained on", *tasks], rows, 2), sources]


# -- pictures -----------------------------------------------------------------------------------------------------


def _plot(facts: Facts, folder: Path) -> list[str]:
    """Draws what there is; returns the names of the files."""
    models, drawn = facts["models"], []
    if tasks := next(iter(models.values()))["tasks"]:
        shares = {name: [_point(each["tasks"][task]) for task in tasks] for name, each in models.items()}
        chances = [figures.get("chance") for figures in tasks.values()]
        _dots(shares, list(tasks), "share right, with 95% interval", folder / "accuracy.png", chances)
        drawn.append("accuracy.png")
    if known := {name: each["text"] for name, each in models.items() if each["text"]}:
        sources = ["all text", *next(iter(known.values())).get("by_source", {})]
        values = {
            name: [(f["bits_per_byte"], f["interval_95"]) for f in (each, *each.get("by_source", {}).values())]
            for name, each in known.items()
        }
        _dots(values, sources, "bits a byte, with 95% interval", folder / "bits.png")
        drawn.append("bits.png")
    if believed := {name: each["calibration"] for name, each in models.items() if each["calibration"]}:
        plot_reliability(believed, folder / "reliability.png")
        drawn.append("reliability.png")
    return drawn


def _point(figures: Facts) -> tuple[float, Sequence[float]]:
    metric = metric_of(figures)
    return figures[metric], figures[f"{metric}_interval_95"]


def _dots(
    values: Mapping[str, Sequence[tuple[float, Sequence[float]]]],
    labels: Sequence[str],
    title: str,
    path: Path,
    chances: Sequence[float | None] = (),
) -> None:
    """A row for each label, in it a dot with its interval for each model, and a bar where guessing stands."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    room = 0.8 / len(values)
    with plt.style.context("seaborn-v0_8-whitegrid"):
        figure, axes = plt.subplots(figsize=(7.5, 1.0 + len(labels) * (0.25 + 0.16 * len(values))))
        for number, (name, points) in enumerate(values.items()):
            places = [row - 0.4 + room * (number + 0.5) for row in range(len(labels))]
            shares = [value for value, _ in points]
            errors = [[max(0.0, v - i[0]) for v, i in points], [max(0.0, i[1] - v) for v, i in points]]
            axes.errorbar(
                shares, places, xerr=errors, fmt="o", markersize=4.5, linewidth=1.3, label=name,
                color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
        for row, chance in enumerate(chances):
            if chance is not None:
                once = "guessing" if row == next(i for i, c in enumerate(chances) if c is not None) else None
                axes.plot([chance, chance], [row - 0.42, row + 0.42], color="#999999", linestyle=":", label=once)
        for row in range(1, len(labels)):
            axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8)
        axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel=title, ylim=(len(labels) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.legend(frameon=True, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.savefig(path, dpi=120, bbox_inches="tight")
        plt.close(figure)
