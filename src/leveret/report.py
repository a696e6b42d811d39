"""report.md: what a run made, in tables and pictures, readable without this project."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from leveret.audit.finding import Stamp
from leveret.audit.stage import AUDIT, read_stamps
from leveret.model.counts import count_parameters
from leveret.recipe import Recipe
from leveret.rundir import RunDir, read_json
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training import STAGES


def write_report(run: RunDir, recipe: Recipe) -> Any:
    """Writes report.md from what is in the run directory; returns its path."""
    known = sections(run, recipe, run.last_trained()).values()
    parts = [f"# {recipe.name}", recipe.description, *known, _pictures(run), _environment(run)]
    path = run / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def sections(run: RunDir, recipe: Recipe, stage: str) -> dict[str, str]:
    """What is known of the model that a stage left, in Markdown, by heading; empty where nothing is."""
    return {
        "Model": _model(run, recipe),
        "Training": _training(run, stage),
        "Evaluation": _evaluation(run, stage),
        "Benchmarks": _benchmarks(run, stage),
        "Audit": _audit(run),
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column left-aligned and the others right-aligned."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of_words(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of texts, all to the left."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, [":--"] * len(header), *rows])


def _model(run: RunDir, recipe: Recipe) -> str:
    tokenizer = Tokenizer.load(run / "tokenizer")
    model = recipe.model.with_vocabulary(tokenizer.vocab_size)
    parameters = count_parameters(model)
    rows = [
        ["parameters", f"{parameters.total:,}"],
        ["of these, embeddings", f"{parameters.embedding:,}"],
        ["layers x width", f"{model.num_hidden_layers} x {model.hidden_size}"],
        ["heads (key-value)", f"{model.num_attention_heads} ({model.kv_heads})"],
        ["context", f"{model.max_position_embeddings:,} tokens"],
        ["vocabulary", f"{tokenizer.vocab_size:,} ({recipe.tokenizer.kind})"],
    ]
    return "## Model\n\n" + table(["", ""], rows)


def _training(run: RunDir, stage: str) -> str:
    stages = run.state()["stages"]
    rows = []
    for name in STAGES[: STAGES.index(stage) + 1]:
        if (summary := read_json(run / name / "summary.json")) and stages.get(name, {}).get("finished"):
            steps, model = summary["steps"], summary.get("model_step", summary["steps"])
            loss = summary["final_validation_loss" if model == steps else "best_validation_loss"]
            memory = summary["peak_memory_bytes"]
            rows.append(
                [
                    name,
                    f"{steps:,}" if model == steps else f"{steps:,}, model of {model:,}",
                    f"{summary['tokens']:,}",
                    f"{summary['epochs']:.2f}",
                    f"{summary['train_seconds']:.0f}",
                    f"{summary['tokens_per_second']:,.0f}",
                    f"{summary['mfu']:.0%}",
                    "" if memory is None else f"{memory / 2**30:.2f}",
                    "" if loss is None else f"{loss:.4f}",
                    "" if summary.get("energy_kwh") is None else f"{summary['energy_kwh']:.3g}",
                    "" if summary.get("cost") is None else f"${summary['cost']:.2f}",
                ]
            )
    header = ["stage", "steps", "tokens", "epochs", "seconds", "tokens/s", "MFU", "peak GiB", "validation loss"]
    header += ["kWh", "cost"]
    for column in (10, 9):
        if not any(row[column] for row in rows):  # no meter that can be read, no price given
            for row in (header, *rows):
                del row[column]
    note = (
        "MFU: share of the device's measured or published matrix-product rate. Seconds are those of the training steps."
    )
    return f"## Training\n\n{table(header, rows)}\n\n{note}" if rows else ""


def _evaluation(run: RunDir, stage: str) -> str:
    results = read_json(run / stage / "evaluation" / "results.json")
    if not results:
        return ""
    loss = results["loss"]
    parts = ["## Evaluation"]
    if "pairs" in loss:
        parts.append(
            f"Of {loss['pairs']:,} held-out pairs of {results['stage']}'s the chosen answer is likelier in "
            f"{loss['preferred']:.1%}, and has gained on the other in {loss['accuracy']:.1%}. Loss {loss['loss']:.4f}, "
            f"margin {loss['margin']:.3f}; log-probability of the chosen {loss['chosen']:.2f}, of the rejected "
            f"{loss['rejected']:.2f} nats."
        )
    elif loss:
        text = f"Validation loss {loss['loss']:.4f} nats a token, perplexity {loss['perplexity']:.2f}"
        if "bits_per_byte" in loss:
            text += f", {loss['bits_per_byte']:.4f} bits a byte"
        parts.append(f"{text}, over {loss['tokens']:,} held-out tokens of {results['stage']}'s data.")
        parts += _by_source(loss.get("by_source", {}))
    rows, failures = [], []
    for name, figures in results["sets"].items():
        low, high = figures["interval_95"]
        rows.append(
            [
                name,
                str(figures["examples"]),
                str(figures["correct"]),
                f"{figures['accuracy']:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{figures['ended_by_itself'] / figures['examples']:.1%}",
            ]
        )
        for category, counts in figures["by_category"].items():
            share = 1 - counts["failed"] / counts["examples"]
            failures.append([f"{name}: {category}", str(counts["examples"]), str(counts["failed"]), f"{share:.1%}"])
    if rows:
        header = ["held-out set", "examples", "exact", "accuracy", "95% interval", "ended by itself"]
        parts += [
            table(header, rows),
            "Greedy decoding; an answer counts if it is the expected one but for white space.",
        ]
        parts += ["### By kind of command", table(["set: kind", "examples", "failed", "exact"], failures)]
    return "\n\n".join([*parts, *_generation(results.get("generation", {}))])


def _by_source(known: dict[str, dict[str, Any]]) -> list[str]:
    """Held-out loss of each source."""
    rows = []
    for name, figures in known.items():
        bits = f"{figures['bits_per_byte']:.4f}" if "bits_per_byte" in figures else ""
        rows.append([name, f"{figures['tokens']:,}", f"{figures['loss']:.4f}", f"{figures['perplexity']:.2f}", bits])
    return [table(["source", "tokens", "loss", "perplexity", "bits a byte"], rows)] if rows else []


def _generation(known: dict[str, dict[str, Any]]) -> list[str]:
    """Repetition and ends of generated text."""
    keys = {"rep_4": "rep-4", "distinct_2": "distinct-2", "ended": "ended", "empty": "empty", "loops": "loops"}
    rows = []
    for name, figures in known.items():
        shares = ["" if figures[key] is None else f"{figures[key]:.1%}" for key in keys]
        rows.append([name, f"{figures['answers']:,}", f"{figures['tokens']:.1f}", *shares])
    if not rows:
        return []
    note = (
        "rep-4: 4-grams of an answer that were in it before (Welleck et al., 2019). distinct-2: different 2-grams of "
        "all answers (Li et al., 2016). loops: answers that end in the same tokens over and over."
    )
    return ["### Generated text", table(["prompts", "answers", "mean tokens", *keys.values()], rows), note]


def _benchmarks(run: RunDir, stage: str) -> str:
    """What `leveret evaluate --suite` left, with the weights it was measured on."""
    results = read_json(run / stage / "evaluation" / "suite" / "results.json")
    if not results:
        return ""
    rows = []
    for task, figures in results["tasks"].items():
        cells = []
        for metric in ("acc", "acc_norm"):
            low, high = figures.get(f"{metric}_interval_95", (0, 0))
            cells += [f"{figures[metric]:.1%}", f"{low:.1%} to {high:.1%}"] if metric in figures else ["", ""]
        chance = f"{figures['chance']:.1%}" if "chance" in figures else ""
        rows.append([task, f"{figures['n']:,}", *cells, chance])
    header = ["benchmark", "questions", "acc", "95% interval", "acc_norm", "95% interval", "by guessing"]
    protocol = results["protocol"]
    note = (
        f"Zero-shot, prompts and scores as {protocol['prompts']} (protocol {protocol['version']}), "
        f"{protocol['dtype']}; {stage}'s weights of step {results['step']:,}, {results['weights_sha256'][:12]}."
    )
    return f"## Benchmarks\n\n{table(header, rows)}\n\n{note}"


def _audit(run: RunDir) -> str:
    """The stamp: every audit with its state, then what was found, then the scores of clean examples alone."""
    stamps = list(read_stamps(run).values())
    if not stamps:
        return ""
    dropped = (read_json(run / AUDIT) or {}).get("dropped", {})
    left_out = sum(sum(kinds.values()) for kinds in dropped.values())
    parts = ["## Audit", table_of_words(["audit", "state", "looked at"], [_stamp(stamp) for stamp in stamps])]
    parts += [
        "\n".join(f"- {stamp.audit}, {finding.severity}: {finding.told()}" for finding in stamp.findings)
        for stamp in stamps
        if stamp.findings
    ]
    if left_out:
        parts.append(f"{left_out} training examples were held out too and are left out of training.")
    if rows := [row for stamp in stamps for row in _clean(stamp)]:
        parts.append(table(["set", "score", "all", "contaminated", "clean alone", "95% interval"], rows))
    return "\n\n".join(parts)


def _stamp(stamp: Stamp) -> list[str]:
    state = f"{len(stamp.findings)} found" if stamp.findings else stamp.state
    return [stamp.audit, state, (stamp.not_run or stamp.looked_at).replace("|", "\\|")]


def _clean(stamp: Stamp) -> Iterator[list[str]]:
    for name, metrics in stamp.facts.get("clean", {}).items():
        for metric, figures in metrics.items():
            clean = ["", ""]
            if figures["accuracy"] is not None:
                low, high = figures["interval_95"]
                clean = [f"{figures['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
            yield [name, metric, f"{figures['of_all']:.1%}", str(figures["left_out"]), *clean]


def _pictures(run: RunDir) -> str:
    lines = [
        f"![{name}: {picture.stem}]({picture.relative_to(run.path)})"
        for name in STAGES
        for picture in sorted((run / name / "plots").glob("*.png"))
    ]
    return "## Curves\n\n" + "\n".join(lines) if lines else ""


def _environment(run: RunDir) -> str:
    facts = read_json(run / "environment.json") or {}
    stages = run.state()["stages"]
    seconds = {name: entry["seconds"] for name, entry in stages.items() if entry["seconds"] is not None}
    spent = table(["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
    machine = ", ".join(
        f"{key} {facts[key]}" for key in ("device_name", "cpu_cores", "threads", "torch") if key in facts
    )
    return f"## Time and machine\n\n{spent}\n\n{machine}."
