"""What the training and evaluation stages of a run do: puts model, data and objective together."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from leveret.api import LoadedModel, load_model
from leveret.audit.stage import audit_benchmarks
from leveret.data.batches import Batches
from leveret.data.config import ExamplesConfig
from leveret.data.examples import examples
from leveret.data.look import label
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.evaluation.calibration import calibration_of, plot_reliability
from leveret.evaluation.config import EvaluateConfig
from leveret.evaluation.exact_match import exact_match, write_rows
from leveret.evaluation.generation import faults
from leveret.evaluation.loss import held_out_loss
from leveret.evaluation.probe import Probe
from leveret.evaluation.suite import evaluate_suite
from leveret.evaluation.tasks import find_tasks
from leveret.hardware.allocator import keep_freed_memory
from leveret.hardware.device import environment, pick_device, pick_dtype
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Completion, Engine
from leveret.inference.quantize import Quantisation, quantise, quantised_folder, rounded, write_quantised
from leveret.model.decoder import Decoder
from leveret.model.lora import add_lora
from leveret.posttraining.config import PreferConfig, ReinforceConfig
from leveret.posttraining.preference import Preferences, measure
from leveret.posttraining.reference import Known, make_reference, read_reference
from leveret.posttraining.reinforce import Reinforce
from leveret.posttraining.rollouts import Rollouts
from leveret.recipe import digest
from leveret.report import write_report
from leveret.run import Run
from leveret.rundir import RunDir, find_run, read_json, write_json
from leveret.tasks.generators import EXAMPLES
from leveret.tasks.shell.sandbox import lack
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.checkpoint import Checkpoint, find_checkpoint, steps_on_disk
from leveret.training.config import TrainingConfig
from leveret.training.loop import Trainer, train
from leveret.training.objective import NextToken, Objective
from leveret.training.parallel import ALONE, Group
from leveret.training.saving import space_needed

SAMPLES = re.compile(r"^(?=## Step \d+$)", re.MULTILINE)
"""Where samples.md is cut into steps."""


def new_model(run: Run, tokenizer: Tokenizer, seed: int, device: torch.device) -> Decoder:
    """The recipe's decoder with fresh weights."""
    config = run.recipe.model.with_vocabulary(tokenizer.vocab_size)
    if config.vocabulary < tokenizer.vocab_size:
        raise UserError(f"model.vocab_size {config.vocabulary} is smaller than the tokenizer's {tokenizer.vocab_size}")
    torch.manual_seed(seed)
    return Decoder(config).to(device)


def make_batches(
    store: TokenStore, config: TrainingConfig, length: int, pad: int, group: Group = ALONE, known: Known | None = None
) -> tuple[Batches, Batches | None]:
    """The batches to train on and, where the data has a validation split, those to validate on; this rank's parts.

    known: what they bring along for each document, by split.
    """

    def of(split: str) -> Batches:
        size, seed, masks = config.batch_size, config.seed, config.document_mask
        figures, rank, ranks = None if known is None else known[split], group.rank, group.ranks
        return Batches(store.split(split), size, length, seed, pad, masks, known=figures, rank=rank, ranks=ranks)

    return of("train"), of("validation") if "validation" in store.manifest["splits"] else None


def base_checkpoint(run: Run, stage: str) -> Checkpoint | None:
    """What a stage starts from: the run named by --from, or the stage before it; None: from nothing."""
    place = list(run.training).index(stage)
    if place:
        found = find_checkpoint(run.run / list(run.training)[place - 1] / "checkpoints")
    elif run.start_from is None:
        return None
    else:
        other, named, step = find_run(run.start_from)
        found = find_checkpoint(other / (named or other.last_trained()) / "checkpoints", step)
    if found is None:
        raise UserError(f"there is no checkpoint to start {stage} from in {run.start_from or run.run.path}")
    return found


@dataclass(frozen=True)
class Lesson:
    """What is learnt in a stage, and how that is measured.

    probe: measures the model after a validation, with random generators of its own; its result joins the metrics.
    """

    objective: Objective
    batches: Batches
    validation: Batches | None
    probe: Callable[[Decoder], dict[str, Any]] | None = None


def run_training(run: Run, stage: str, base: Checkpoint | None) -> None:
    """Trains the recipe's model in a stage, from the base's weights or from nothing."""
    config, device, tokenizer = run.training[stage], pick_device(run.device), run.load_tokenizer()
    model = new_model(run, tokenizer, config.seed, device)
    if base is not None:
        model.load_state_dict(base.weights(model.config))
    if config.adapters is not None:
        add_lora(model, config.adapters, config.seed)
    if stage != "pretrain":  # rows of examples always keep them apart
        config = config.model_copy(update={"document_mask": True})
    if isinstance(config, PreferConfig):
        lesson = _preferences(run, stage, model, config, base, device, tokenizer)
    elif isinstance(config, ReinforceConfig):
        config = config.model_copy(update={"parallel": config.parallel.model_copy(update={"kind": "ddp"})})
        lesson = _rewards(run, stage, model, config, device, tokenizer)
    else:
        batches = make_batches(run.store(stage), config, run.recipe.row_length(stage), tokenizer.pad_id or 0, run.group)
        lesson = Lesson(NextToken(config.loss_kernel), *batches)
    _train(run, stage, model, config, lesson, device, tokenizer)


def _preferences(
    run: Run,
    stage: str,
    model: Decoder,
    config: PreferConfig,
    base: Checkpoint | None,
    device: torch.device,
    tokenizer: Tokenizer,
) -> Lesson:
    """Pairs that bring along what the base gives their answers; `model` is still the base."""
    store, dtype = run.store(stage), pick_dtype(config.precision, device)
    make = partial(make_batches, store, length=run.recipe.row_length(stage), pad=tokenizer.pad_id or 0)
    if config.has_reference:
        rows = config.micro_batch_size if isinstance(config.micro_batch_size, int) else min(config.batch_size, 16)
        train, held_out = make(config=config.model_copy(update={"batch_size": rows}))
        splits = {"train": train} | ({} if held_out is None else {"validation": held_out})
        start = digest(run.recipe.model.model_dump() | {"seed": config.seed}) if base is None else base.weights_sha256
        key = {"weights": start, "shards": digest(store.manifest), "dtype": str(dtype), "device": device.type}
        folder = run.run / stage / "reference"
        known = make_reference(
            folder, key, model, splits, dtype, run.group, partial(run.console.print, highlight=False)
        )
    else:
        known = _without_reference(store)
    objective, (_, whole) = Preferences(config), make(config=config, known=known)

    def probe(model: Decoder) -> dict[str, Any]:
        if whole is None:
            return {}
        figures = measure(model, objective, whole.in_order(config.eval_batches), device, dtype)
        run.console.print(
            f"{stage}: chosen answer likelier {figures['preferred']:.1%} · margin {figures['margin']:.3f} · "
            f"log-probability of the chosen {figures['chosen']:.2f}, of the rejected {figures['rejected']:.2f}",
            highlight=False,
        )
        return {f"validation_{name}": figures[name] for name in figures if name not in ("pairs", "loss")}

    return Lesson(objective, *make(config=config, group=run.group, known=known), probe)


def _rewards(
    run: Run, stage: str, model: Decoder, config: ReinforceConfig, device: torch.device, tokenizer: Tokenizer
) -> Lesson:
    """Prompts that `model`, which is still the base, answers as it learns."""
    store, dtype = run.store(stage), pick_dtype(config.precision, device)
    objective = Reinforce(config, deepcopy(model).requires_grad_(False).eval() if config.kl else None)
    make = partial(Rollouts, store, config=config, model=model, tokenizer=tokenizer, objective=objective, dtype=dtype)
    batches = make("train", group=run.group)
    if any(map(batches.grader.is_command, batches.references)) and (why := lack()) is not None:
        run.console.print(f"{stage}: commands are only compared with the expected ones, not run: {why}")
    held_out = make("validation") if "validation" in store.manifest["splits"] else None

    def probe(model: Decoder) -> dict[str, Any]:
        if held_out is None:
            return {}
        found = held_out.held_out(model, config.eval_batches and config.eval_batches * config.prompts)
        run.console.print(
            f"held-out reward {found['validation_reward']:.3f} · exact {found['validation_exact']:.1%} · ended "
            f"{found['validation_ended']:.1%}",
            highlight=False,
        )
        return found

    return Lesson(objective, batches, None, probe)


def _without_reference(store: TokenStore) -> Known:
    """Zeros: the logarithm of a base that finds every answer certain changes no margin."""
    return {name: np.zeros(facts["documents"], dtype=np.float32) for name, facts in store.manifest["splits"].items()}


def _train(
    run: Run,
    stage: str,
    model: Decoder,
    config: TrainingConfig,
    lesson: Lesson,
    device: torch.device,
    tokenizer: Tokenizer,
) -> None:
    folder = run.run / stage
    trainer = Trainer(
        label=stage,
        model=model,
        objective=lesson.objective,
        batches=lesson.batches,
        validation=lesson.validation,
        config=config,
        folder=folder,
        device=device,
        console=run.console,
        recipe=run.run.recipe_text(),
        probe=partial(_probe, run, stage, tokenizer, lesson, _benchmarks(run)),
        profile=run.profile,
        room_after=_room_after(run, stage, model),
        group=run.group,
    )
    if device.type == "cpu":
        keep_freed_memory()
    if run.group.main:
        write_json(run.run / "environment.json", environment(device))
    summary = train(trainer)
    if run.group.main:
        write_json(folder / "summary.json", summary)


def _benchmarks(run: Run) -> Probe | None:
    config = run.recipe.evaluate.probe
    return Probe(config, run.base_dir, run.console.print) if config is not None and run.group.main else None


def _probe(
    run: Run, stage: str, tokenizer: Tokenizer, lesson: Lesson, benchmarks: Probe | None, step: int, model: Decoder
) -> dict[str, Any]:
    """What a stage does after each validation: samples are written, and it measures what it wants to."""
    write_samples(run, stage, model, tokenizer, step)
    found = {} if lesson.probe is None else lesson.probe(model)
    if benchmarks is not None and (shares := benchmarks.measure(step, model, tokenizer)):
        told = " · ".join(f"{name.removeprefix('probe_')} {share:.1%}" for name, share in shares.items())
        run.console.print(f"step {step} · {told}", highlight=False)
        found |= shares
    return found


def _room_after(run: Run, stage: str, model: Decoder) -> int:
    """Bytes that the stages after this one will need on the same disk."""
    stages = list(run.training)
    later = {name: run.training[name] for name in stages[stages.index(stage) + 1 :]}
    return sum(space_needed(model.config, config, run.steps_of(name, config)) for name, config in later.items())


def write_samples(run: Run, stage: str, model: Decoder, tokenizer: Tokenizer, step: int) -> None:
    """Adds what the model says to the recipe's prompts to samples.md, in the place of this step's and later ones:
    greedy continuations, after pretraining answers through the chat template, on lines of their own."""
    path, prompts = run.run / stage / "samples.md", run.recipe.sample_prompts

    def ids(prompt: str) -> list[int]:
        if stage == "pretrain":
            return tokenizer.encode(prompt)
        return render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True).ids

    if prompts:
        model.eval()
        answers = Engine(model, tokenizer).generate(list(map(ids, prompts)), SamplingConfig(max_new_tokens=48))
        model.train()
        between = "" if stage == "pretrain" else "\n"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = [part for part in SAMPLES.split(before) if part and int(part.split(maxsplit=3)[2]) < step]
        said = [prompt + between + answer.text for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [f"```text\n{text}\n```\n\n" for text in said]
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text("".join([*kept, f"## Step {step}\n\n", *texts]), encoding="utf-8")
            partial.replace(path)
        except OSError as error:  # a disk that is full stops no training
            run.console.print(f"the samples of step {step} are not kept ({error.strerror})", highlight=False)


def evaluate_run(run: Run, loaded: LoadedModel, config: EvaluateConfig) -> dict[str, Any]:
    """Loss on the stage's validation split and exact match on every held-out set; writes evaluation/ of the stage."""
    folder = run.run / loaded.stage / "evaluation"
    results, rows = _match_sets(loaded, config, run.base_dir, run.console)
    results["loss"] = _losses(run, loaded)
    results["generation"] = _faults(loaded, config, rows)
    if config.tasks:
        asked = evaluate_suite(loaded, find_tasks(",".join(config.tasks), run.base_dir, config.tasks), config.limit)
        results["tasks"] = asked.tasks
        rows |= {task: [row for row in asked.rows if row["task"] == task] for task in asked.tasks}
    for name, answered in rows.items():
        write_rows(folder / f"{name}.jsonl", answered)
    write_json(folder / "results.json", results)
    return results


def _match_sets(
    loaded: LoadedModel, config: EvaluateConfig, base_dir: Path, console: Console
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The results without loss, and for each held-out set the rows of its examples."""
    results: dict[str, Any] = {
        "format_version": 1,
        "stage": loaded.stage,
        "step": loaded.step,
        "weights_sha256": loaded.weights_sha256,
        "protocol": {
            "decoding": f"{_decoding(config)}, float32",
            "max_new_tokens": config.max_new_tokens,
            "match": "exact after collapsing white space",
            "limit": config.limit,
        },
        "loss": {},
        "sets": {},
    }
    rows = {}
    for name, source in config.sets.items():
        asked = list(examples(source, base_dir, EXAMPLES))[: config.limit]
        figures, rows[name] = exact_match(loaded.engine, asked, config.decoding, config.batch_size)
        results["sets"][name] = figures
        low, high = figures["interval_95"]
        console.print(
            f"evaluate: {name}: {figures['correct']} of {figures['examples']} exact, "
            f"{figures['accuracy']:.1%} (95%: {low:.1%} to {high:.1%})",
            highlight=False,
        )
    return results, rows


def _faults(loaded: LoadedModel, config: EvaluateConfig, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Repetition, loops and ends of the answers to the recipe's prompts and to each held-out set."""
    answers = {
        name: [Completion(row["answer"], loaded.tokenizer.encode(row["answer"]), row["finish"]) for row in answered]
        for name, answered in rows.items()
    }
    if prompts := loaded.recipe.sample_prompts:
        answers["sample prompts"] = loaded.engine.generate([loaded.encode(each) for each in prompts], config.decoding)
    return {name: faults(each) for name, each in answers.items()}


def _decoding(config: EvaluateConfig) -> str:
    return "greedy" if config.beams == 1 else f"{config.beams} beams, length penalty {config.length_penalty:g}"


def _losses(run: Run, loaded: LoadedModel) -> dict[str, Any]:
    """Held-out loss of the stage's own data, measured over the whole validation split; of pairs, their measures."""
    if loaded.stage not in run.recipe.stages or loaded.stage not in (read_json(run.run / "data.json") or {}):
        return {}  # such as an imported model, whose data nobody knows
    engine = loaded.engine
    assert isinstance(engine, Engine), "a run's model is computed here"
    config, length = run.recipe.stages[loaded.stage], run.recipe.row_length(loaded.stage)
    if loaded.stage != "pretrain":
        config = config.model_copy(update={"document_mask": True})
    store, known = run.store(loaded.stage), None
    if isinstance(config, PreferConfig):
        made = read_reference(run.run / loaded.stage / "reference", {"shards": digest(store.manifest)})
        known = made if config.has_reference else _without_reference(store)
        if known is None:
            return {}
    _, validation = make_batches(store, config, length, loaded.tokenizer.pad_id or 0, known=known)
    if validation is None:
        return {}
    if isinstance(config, PreferConfig):
        return measure(engine.model, Preferences(config), validation.in_order(), engine.device, torch.float32)
    labels = [label(source) for source in store.manifest.get("sources", [])]
    return held_out_loss(engine.model, validation, engine.device, labels=labels)


def evaluate_reference(
    reference: str, limit: int | None, file: str | None, output: Path | None, device: str
) -> dict[str, Any]:
    """`leveret evaluate`: the recipe's sets, or one file of examples, with the model that `reference` names.

    Written to the stage's evaluation/ only where it is the whole of it: every example, the newest checkpoint.
    """
    loaded, console = load_model(reference, device), Console(stderr=True)
    config = loaded.recipe.evaluate
    if file is not None:  # any model that chats can be asked
        sets = {"examples": ExamplesConfig(paths=[file])}
        config = config.model_copy(update={"limit": limit or config.limit, "sets": sets})
        results, rows = _match_sets(loaded, config, Path.cwd(), console)
    elif loaded.run is None:
        raise UserError(f"{reference} is no run and has no held-out sets: give --examples FILE or --suite NAME")
    else:
        run = Run(loaded.recipe, Path.cwd(), loaded.run.path, console, device)
        if limit is None and output is None and _is_newest(loaded.run, loaded):
            return evaluate_run(run, loaded, config)
        config = config.model_copy(update={"limit": limit or config.limit})
        results, rows = _match_sets(loaded, config, run.base_dir, console)
        results["loss"] = _losses(run, loaded)
    if output is not None:
        write_rows(output, [{"set": name} | row for name, answered in rows.items() for row in answered])
    return results


def evaluate_on_suite(
    reference: str, suite: str, limit: int | None, bench: Path | None, output: Path | None, device: str
) -> dict[str, Any]:
    """`leveret evaluate --suite`: benchmarks and other tasks, with any model of ours.

    Written to evaluation/suite/ of the run's stage, beside what is there of the same weights under the same protocol,
    and into its report, as `evaluate_reference` does.
    """
    loaded = load_model(reference, device)
    console = Console(stderr=True, soft_wrap=True)
    tasks = find_tasks(suite, Path.cwd(), loaded.recipe.evaluate.tasks)
    found = evaluate_suite(loaded, tasks, limit, bench, lambda line: console.print(line, highlight=False))
    facts = {"model": reference, "stage": loaded.stage, "step": loaded.step, **found.facts}
    if output is not None:
        write_rows(output, found.rows)
    elif limit is None and loaded.run is not None and _is_newest(loaded.run, loaded):
        folder = loaded.run / loaded.stage / "evaluation" / "suite"
        known = read_json(folder / "results.json") or {}
        if all(known.get(key) == facts[key] for key in facts if key not in ("tasks", "model", "versions")):
            facts["tasks"] = known["tasks"] | facts["tasks"]
        for task in found.tasks:
            write_rows(folder / f"{task}.jsonl", [row for row in found.rows if row["task"] == task])
        write_json(folder / "results.json", facts)
        if believed := calibration_of(found.rows):
            plot_reliability({f"{loaded.run.name}/{loaded.stage}": believed}, folder / "reliability.png")
        run = Run(loaded.recipe, Path.cwd(), loaded.run.path, console, device)
        stamp = audit_benchmarks(run, found.questions, folder)
        console.print(f"audit: benchmarks {stamp.state}; {stamp.not_run or stamp.looked_at}", highlight=False)
        write_report(loaded.run, loaded.recipe)
    return facts


def ask_through_harness(
    reference: str, tasks: list[str], limit: int | None, bench: Path | None, output: Path | None, device: str
) -> dict[str, Any]:
    """`leveret evaluate --suite --harness`: the same or any other tasks through lm-evaluation-harness; kept nowhere."""
    try:
        from leveret.evaluation.harness import evaluate_through_harness
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'leveret[eval]'") from None
    told, rows = evaluate_through_harness(load_model(reference, device), tasks, limit, bench)
    if output is not None:
        write_rows(output, rows)
    return told


def _is_newest(run: RunDir, loaded: LoadedModel) -> bool:
    """Whether it is the last checkpoint of its stage."""
    return loaded.step == steps_on_disk(run / loaded.stage / "checkpoints")[-1]


def quantise_reference(
    reference: str, bits: Quantisation, limit: int | None, device: str
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """`leveret quantize`: writes the packed weights beside the stage's checkpoints, and measures what was lost.

    Returns:
        The folder, and for "before" and "after": bytes, the loss's figures, exact match on each held-out set.
    """
    loaded = load_model(reference, device)
    if loaded.run is None:
        raise UserError(f"{reference} is no run, whose data would show what is lost: give --quantize when it is used")
    run = Run(loaded.recipe, Path.cwd(), loaded.run.path, Console(stderr=True), device)
    config = loaded.recipe.evaluate.model_copy(update={"limit": limit or loaded.recipe.evaluate.limit})
    assert isinstance(loaded.engine, Engine), "a run's model is computed here"
    size = sum(weight.nbytes for weight in loaded.engine.model.parameters())
    if not loaded.chats:
        config = config.model_copy(update={"sets": {}})
    before = {
        "bytes": size,
        "loss": _losses(run, loaded),
        "sets": _match_sets(loaded, config, run.base_dir, run.console)[0]["sets"],
    }
    model = quantise(loaded.engine.model, bits)
    loaded.engine = Engine(rounded(model), loaded.tokenizer)
    losses = _losses(run, loaded)
    loaded.engine = Engine(model, loaded.tokenizer)
    after = {"loss": losses, "sets": _match_sets(loaded, config, run.base_dir, run.console)[0]["sets"]}
    folder = quantised_folder(loaded.run / loaded.stage, bits, loaded.step)
    facts = {"bits": bits, "source_sha256": loaded.weights_sha256, "before": before, "after": after}
    return folder, {"before": before, "after": {"bytes": write_quantised(folder, model, facts), **after}}
