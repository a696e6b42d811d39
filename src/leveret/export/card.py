"""The model card: what a run knows of the model it left, for people, with the front matter that the Hub reads.

    RUN --> report.py's sections: model, training, evaluation, benchmarks, audit --+
        --> data.json, manifests: sources, licences, revisions ---------------------+--> README.md
        --> environment, summaries: hardware, hours, energy, cost ------------------+
        --> shape, template: limits, how to use, citation --------------------------+

Nothing is made up: what the run does not know, the card says is not known. Paths of this machine are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from leveret import __version__
from leveret.export.card_usage import usage
from leveret.export.source import IMPORTED, Source, find_source
from leveret.model.counts import count_parameters
from leveret.report import sections, table, table_of_words
from leveret.rundir import read_json
from leveret.training import STAGES

CURVES = "loss.png"
NO_NAME = "FOLDER_OR_REPO"
"""Loads a model that has not been exported yet."""
WORDS = {
    "rope": "rotary positions", "learned": "learned positions", "none": "no positions", "rms": "RMSNorm",
    "layer": "LayerNorm", "swiglu": "SwiGLU", "gelu": "GELU", "relu2": "squared ReLU",
    "sequential": "attention, then feed-forward", "parallel": "attention and feed-forward side by side, a norm each",
    "parallel-shared-norm": "attention and feed-forward side by side, one norm",
}  # fmt: skip
"""Of the values of the decoder's knobs, in words."""


def card(source: Source, name: str, licence: str | None, pictures: Mapping[str, str]) -> str:
    """The text of the card.

    Args:
        name: by which the model is loaded: a name on the Hub or of a folder.
        licence: of the weights, as the Hub names it. None: not stated.
        pictures: by stage, where its loss curve is.
    """
    run, recipe = source.run, source.recipe
    known = sections(run, recipe, source.stage)
    imported = read_json(run / IMPORTED)
    parts = [
        _front_matter(source, licence, imported),
        f"# {recipe.name}",
        _summary(source, licence, imported),
        known["Model"] + "\n\n" + _architecture(source),
        _data(source),
        known["Training"] or "## Training\n\nNothing was trained in this run.",
        _spent(source),
        _curves(pictures),
        _evaluation(source, known["Evaluation"], known["Benchmarks"]),
        known["Audit"] or "## Audit\n\nNo audit of leaks was run.",
        _limits(source, known),
        usage(source, name),
        _citation(source),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(source: Source, folder: Path, name: str, licence: str | None) -> None:
    """Writes README.md into a model's folder, and its pictures beside it."""
    pictures = {stage: (f"loss-{stage}.png", path) for stage, path in curves(source).items()}
    for file, path in pictures.values():
        shutil.copyfile(path, folder / file)
    text = card(source, name, licence, {stage: file for stage, (file, _) in pictures.items()})
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_card_of_run(reference: str, licence: str | None) -> Path:
    """Writes card.md into the run itself, with the pictures that are there.

    Raises:
        UserError: there is no such run, or no such checkpoint of it.
    """
    source = find_source(reference)
    pictures = {stage: str(path.relative_to(source.run.path)) for stage, path in curves(source).items()}
    path = source.run / "card.md"
    path.write_text(card(source, NO_NAME, licence, pictures), encoding="utf-8")
    return path


def curves(source: Source) -> dict[str, Path]:
    """By stage, the picture of its loss, as far as there are any."""
    found = {stage: source.run / stage / "plots" / CURVES for stage in _stages(source)}
    return {stage: path for stage, path in found.items() if path.exists()}


def _stages(source: Source) -> list[str]:
    """The stages that made the model, in order."""
    finished = source.run.state()["stages"]
    return [name for name in STAGES[: STAGES.index(source.stage) + 1] if finished.get(name, {}).get("finished")]


def _front_matter(source: Source, licence: str | None, imported: Mapping[str, Any] | None) -> str:
    datasets = dict.fromkeys(facts["name"] for _, facts, _ in _sources(source) if facts["kind"] == "hub")
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["leveret"]}
    if licence is not None:
        facts["license"] = licence
    if imported is not None and imported["revision"] is not None:
        facts["base_model"] = imported["source"]
    if datasets:
        facts["datasets"] = list(datasets)
    if languages := _languages(source):
        facts["language"] = languages
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _languages(source: Source) -> list[str]:
    """Those that a filter of the corpus let through; else nobody looked."""
    named = [code for filter in source.recipe.data.filters for code in getattr(filter, "languages", ())]
    return sorted(set(named))


def _summary(source: Source, licence: str | None, imported: Mapping[str, Any] | None) -> str:
    lines = [source.recipe.description] if imported is None else []
    parameters = count_parameters(source.config).total
    way = ", then ".join(_stages(source))
    lines.append(f"{parameters:,} parameters; step {source.checkpoint.step:,} of {source.stage}; stages: {way}.")
    if imported is not None and imported["revision"]:
        lines.append(f"It started from {imported['source']} at revision {imported['revision']}.")
    elif imported is not None:
        lines.append("It started from a model of others that was in a folder; where that is from is not known here.")
    elif base := _base(source):
        lines.append(f"It started from another run's weights, SHA-256 {base[:16]}; that run's name is not known here.")
    lines.append(f"Licence of the weights: {licence or 'not stated'}.")
    lines.append(f"SHA-256 of the weights that were trained: {source.checkpoint.weights_sha256}.")
    return "\n".join(f"{line}  " for line in lines).rstrip()


def _base(source: Source) -> str | None:
    """The weights that the first stage began with, if they are another run's."""
    done = source.run.state()["stages"]
    first = next((name for name in _stages(source)), None)
    base = done[first]["inputs"].get("the base model") if first else None
    return str(base) if base else None


def _architecture(source: Source) -> str:
    model = source.config
    knobs = ", ".join(WORDS[getattr(model, knob)] for knob in ("position", "norm", "mlp", "residual"))
    extras = [name for name in ("qk_norm", "attention_bias", "mlp_bias", "value_residual", "value_embeddings",
                                "residual_scales") if getattr(model, name)]  # fmt: skip
    extras += [f"{name} {value}" for name in ("logit_softcap", "sliding_window") if (value := getattr(model, name))]
    tied = "the head is the embedding" if model.tie_word_embeddings else "a head of its own"
    return f"A decoder: {knobs}; {', '.join([*extras, tied])}. Parameters are counted from the shape, a tied head once."


# -- data and what it took ----------------------------------------------------------------------------------------


def _sources(source: Source) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(stage, the source as configured, what the manifest counted of it) for all sources of the model's stages."""
    places = read_json(source.run / "data.json") or {}
    for stage in _stages(source):
        manifest = read_json(source.run / places[stage] / "manifest.json") if stage in places else None
        counted = ((manifest or {}).get("splits", {}).get("train") or {}).get("sources", [])
        by_number = {entry["source"]: entry for entry in counted}
        read = (manifest or {}).get("documents", [])
        for number, facts in enumerate((manifest or {}).get("sources") or _configured(source, stage)):
            revision = read[number].get("revision") if number < len(read) else None
            yield stage, facts, {"revision": revision or facts.get("revision"), **by_number.get(number, {})}


def _configured(source: Source, stage: str) -> list[dict[str, Any]]:
    """The sources by the recipe, where the prepared data is gone."""
    recipe = source.recipe
    if stage != "pretrain" and stage not in recipe.tuning:
        return []
    named = recipe.data.sources if stage == "pretrain" else recipe.tuning[stage].examples
    return [each.model_dump(mode="json", exclude_none=True) for each in named]


def _data(source: Source) -> str:
    rows = []
    for stage, facts, counted in _sources(source):
        paths = facts.get("paths") or [file["name"] for file in facts.get("files", [])]  # of a recipe, of shards
        name = facts.get("name") or facts.get("generator") or ", ".join(Path(path).name for path in paths)
        where = {"hub": "", "generated": " (generated by Leveret)", "files": " (files)"}[facts["kind"]]
        revision = counted["revision"] or ("not recorded" if facts["kind"] == "hub" else "")
        rows.append(
            [
                f"{stage}: {' '.join(filter(None, (name, facts.get('subset'))))}{where}".replace("|", "\\|"),
                (facts.get("licence") or "not stated").replace("|", "\\|"),
                revision,
                *(f"{counted[key]:,}" if key in counted else "not known" for key in ("documents", "tokens")),
            ]
        )
    header = ["source", "licence", "revision", "documents or examples", "tokens"]
    text = table(header, rows) if rows else "What it was trained on is not known here."
    tokenizer = source.recipe.tokenizer
    named = f" {tokenizer.source}" if tokenizer.source and not Path(tokenizer.source).exists() else ""
    cut = f"Tokenizer: {tokenizer.kind}{named}, {source.tokenizer.vocab_size:,} entries."
    return f"## Data\n\n{text}\n\n{cut}"


def _spent(source: Source) -> str:
    facts = read_json(source.run / "environment.json") or {}
    done = source.run.state()["stages"]
    summaries = {stage: read_json(source.run / stage / "summary.json") or {} for stage in _stages(source)}
    machine = ", ".join(
        str(facts[key]) if key == "device_name" else f"{key.replace('_', ' ')} {facts[key]}"
        for key in ("device_name", "cpu_cores", "threads", "torch")
        if key in facts
    )
    trained = [each["train_seconds"] for each in summaries.values() if "train_seconds" in each]
    whole = sum(entry["seconds"] or 0 for name, entry in done.items() if name not in STAGES or name in summaries)
    rows = [
        ["machine", machine or "not recorded"],
        ["tokens trained on", _sum(summaries, "tokens", "{:,}", "not recorded")],
        ["hours of training steps", f"{sum(trained) / 3600:,.2f}" if trained else "not recorded"],
        ["hours of all stages", f"{whole / 3600:,.2f}" if whole else "not recorded"],
        ["energy", _sum(summaries, "energy_kwh", "{:.3g} kWh", "not measured: nothing here counts it")],
        ["cost", _sum(summaries, "cost", "${:,.2f}", "not known: no price was given")],
    ]
    return "## What it took\n\n" + table_of_words(["", ""], rows)


def _sum(summaries: Mapping[str, Mapping[str, Any]], key: str, form: str, nothing: str) -> str:
    """A sum over the stages that know it; those that do not are named."""
    known = {stage: each[key] for stage, each in summaries.items() if each.get(key) is not None}
    missing = [stage for stage in summaries if stage not in known]
    if not known:
        return nothing
    return form.format(sum(known.values())) + (f" (without {', '.join(missing)}: not known)" if missing else "")


def _curves(pictures: Mapping[str, str]) -> str:
    if not pictures:
        return "## Curves\n\nThere is no picture of the loss."
    return "## Curves\n\n" + "\n".join(f"![loss in {stage}]({path})" for stage, path in pictures.items())


# -- what it can and cannot do ------------------------------------------------------------------------------------


def _evaluation(source: Source, held_out: str, benchmarks: str) -> str:
    """Only what was measured on these very weights."""
    folder = source.run / source.stage / "evaluation"
    found = []
    for text, file in ((held_out, folder / "results.json"), (benchmarks, folder / "suite" / "results.json")):
        results = read_json(file) or {}
        if text and results.get("weights_sha256") == source.checkpoint.weights_sha256:
            found.append(text + (_protocol(results) if text is held_out else ""))
    return "\n\n".join(found) or "## Evaluation\n\nThese weights were not evaluated."


def _protocol(results: Mapping[str, Any]) -> str:
    said = [f"{key.replace('_', ' ')}: {value}" for key, value in results["protocol"].items() if value is not None]
    return f"\n\nProtocol: {'; '.join(said)}. Intervals are Wilson's." if results["sets"] else ""


def _limits(source: Source, known: Mapping[str, str]) -> str:
    model = source.config
    lines = [
        f"It reads at most {model.max_position_embeddings:,} tokens.",
        f"With {count_parameters(model).total:,} parameters it knows little, and says what is false as fluently as "
        "what is true.",
    ]
    if source.stage == "pretrain" and read_json(source.run / IMPORTED) is None:
        lines.append("It is a base model: it goes on with a text, and was not taught to follow instructions.")
    if not _languages(source):
        lines.append("In which languages it was trained was not measured.")
    if not known["Benchmarks"]:
        lines.append("It was not run on public benchmarks.")
    if not known["Audit"]:
        lines.append("Whether what it is evaluated on was trained on has not been looked into.")
    lines.append("Harmful or biased output was not looked for, and nothing was done against it.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _citation(source: Source) -> str:
    finished = source.run.state()["stages"][source.stage]["finished"]
    key = "".join(letter if letter.isalnum() else "_" for letter in source.recipe.name)
    note = f"Made with Leveret {__version__}; weights SHA-256 {source.checkpoint.weights_sha256[:16]}"
    return (
        f"## Citation\n\nIts authors are not recorded in the run; add them.\n\n```bibtex\n@misc{{{key},\n"
        f"  title = {{{source.recipe.name}}},\n  year = {{{finished[:4]}}},\n"
        f"  note = {{{note}}},\n}}\n```"
    )
