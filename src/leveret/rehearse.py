"""`leveret rehearse`: whether a recipe's real run would go through, and what it would take.

    recipe --> its sources are opened, room and secrets looked for
           --> the same recipe with few rows and few steps --> a run of its own, in a folder that goes again
                                                           --> seconds of a step, memory --> hours, dollars

The model, its rows and its optimizer are the real ones; a batch is cut to what a moment is enough for. Where that does
not fit into the memory here, the shapes alone are walked through (meta tensors).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from leveret.display import duration
from leveret.errors import UserError
from leveret.hardware.device import pick_device, pick_dtype
from leveret.hardware.memory import available_memory
from leveret.hardware.peak import peak_flops
from leveret.model.config import ModelConfig
from leveret.model.counts import flops_per_token
from leveret.model.decoder import hollow_decoder
from leveret.planning.checks import Finding, Looked, check_disk, check_secrets, check_sources
from leveret.planning.cost import Cost, training_cost
from leveret.planning.describe import expected_model
from leveret.planning.machines import Place
from leveret.posttraining.config import PosttrainingConfig, ReinforceConfig
from leveret.recipe import Recipe, anchored, parse_recipe, to_yaml
from leveret.rundir import read_json, read_object
from leveret.smoke import stand_in_documents, stand_in_examples, usable_tokenizer
from leveret.training.config import TrainingConfig
from leveret.training.graphs import PAYS_AFTER
from leveret.training.memory import training_memory
from leveret.training.saving import space_needed

STEPS = 3
"""Of each stage; the first warms up."""
PATIENCE = 10.0
"""Seconds that a step should take at most here, as the device's peak has it; the batch is cut until it does."""
HOPELESS = 60.0
"""Seconds of a step of one row, likewise, from which only shapes are looked at."""
FEW_TOKENS = 0.25
"""Tokens in a byte of text, where nothing was tokenised."""
META = "meta"
"""The device that has shapes only."""


@dataclass
class Rehearsal:
    """What is rehearsed, where, and what was found.

    place: another machine whose hours are wanted; None: this one's. price: dollars an hour of this one. rows: by stage,
    of the batch that is tried here; none where shapes are all that is tried.
    """

    recipe: Recipe
    base: Path
    run_dir: Path
    device: str = "auto"
    place: Place | None = None
    price: float | None = None
    rows: dict[str, int] = field(default_factory=dict)
    looked: list[Looked] = field(default_factory=list)

    @property
    def model(self) -> ModelConfig:
        return expected_model(self.recipe)

    def findings(self) -> Iterator[Finding]:
        """One check after the other."""
        stages = ", ".join(self.recipe.stages)
        yield Finding("ok", "recipe", f"{self.recipe.name}: {stages}")
        for each in check_sources(self.recipe, self.base):
            self.looked.append(each)
            yield each.finding
        yield self._tokenizer()
        yield from check_secrets(self.recipe)
        yield from self._choose()
        with tempfile.TemporaryDirectory(prefix="leveret-rehearsal-") as folder:
            tried = Path(folder) / "run"
            yield from self._run(tried) if self.rows else self._shapes()
            sizes = {stage: self._steps(stage, tried) for stage in self.recipe.stages}
            yield from self._time(tried, sizes)
            yield from self._disk(tried, sizes)

    def _tokenizer(self) -> Finding:
        """Whether it can be loaded, if it is."""
        config = self.recipe.tokenizer
        if config.trained:
            return Finding("ok", "tokenizer", f"{config.kind} with {config.vocab_size} entries is trained")
        from leveret.tokenizer.load import load_tokenizer

        try:
            loaded = load_tokenizer(config, self.base)
        except UserError as error:
            return Finding("problem", "tokenizer", " ".join(str(error).split()))
        return Finding("ok", "tokenizer", f"{config.source}: {loaded.vocab_size:,} entries")

    # -- a few steps ----------------------------------------------------------------------------------------------

    def _choose(self) -> Iterator[Finding]:
        """Sets the rows that each stage tries here, none where a stage does not fit or would take too long."""
        if self.device == META:
            return
        device, rows = pick_device(self.device), {}
        for stage, config in self.recipe.stages.items():
            length, dtype = self.recipe.row_length(stage), pick_dtype(config.precision, device)
            work = length * flops_per_token(self.model, length, config.gradient_checkpointing)
            seconds = work / peak_flops(device, dtype)[0]
            most = min(config.batch_size, max(1, int(PATIENCE / seconds / 3)))  # steps reach a third of the peak
            share = config.batch_size if config.micro_batch_size in (None, "auto") else config.micro_batch_size
            at_once = min(most, share) if config.micro_batch_size == "auto" else share
            assert isinstance(at_once, int)
            needed = training_memory(self.model, config, length, at_once, dtype, device)["total"]
            have = available_memory(device)
            if have is not None and needed > have:
                said = f"{at_once} rows at once take {needed / 2**30:.1f} GiB and there are {have / 2**30:.1f} here"
                state = "problem" if self.place is None else "warning"
                yield Finding(state, stage, f"{said}; micro_batch_size: auto, or another machine (--gpu)")  # type: ignore[arg-type]
                return
            if seconds > HOPELESS:
                yield Finding("warning", stage, "a step takes minutes here, so only its shapes are looked at")
                return
            group = config.group_size if isinstance(config, ReinforceConfig) else 1
            rows[stage] = max(group, most // group * group)
        self.rows = rows

    def _run(self, folder: Path) -> Iterator[Finding]:
        """The few steps, in a process of their own, so that its memory is its own."""
        recipe = folder.parent / "recipe.yaml"
        recipe.write_text(to_yaml(anchored(self._few(), self.base)), encoding="utf-8")
        words = ["run", str(recipe), "--run-dir", str(folder), "--copy-data", "--device", self.device]
        command = [sys.executable, "-m", "leveret", *words]
        places = {"LEVERET_CACHE": str(folder.parent / "cache"), "TMPDIR": str(folder.parent)}
        child = subprocess.Popen(
            command, env=os.environ | places, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, said = child.communicate()
        finally:
            child.kill()
            child.wait()
        for stage in self.recipe.stages:
            if facts := read_object(folder / stage / "summary.json"):
                yield self._stepped(folder, stage, facts)
        if child.returncode:
            lines = [line for line in said.splitlines() if line.strip()] or ["it was killed, perhaps for its memory"]
            last = lines[-1].removeprefix("leveret: ").replace(str(folder), "the rehearsal's folder")
            yield Finding("problem", "run", f"{last} (exit code {child.returncode})")

    def _stepped(self, folder: Path, stage: str, facts: dict[str, Any]) -> Finding:
        """What a stage's few steps have shown."""
        config, length = self.recipe.stages[stage], self.recipe.row_length(stage)
        rows, device = self.rows[stage], pick_device(self.device)
        at_once = _at_once(config, rows)
        expected = training_memory(self.model, config, length, at_once, pick_dtype(config.precision, device), device)
        held = facts.get("peak_memory_bytes")
        memory = "" if held is None else f"; {held / 2**30:.2f} GiB held at most"
        memory += f"{', with the program itself' * (device.type == 'cpu' and held is not None)}"
        memory += f", {expected['total'] / 2**30:.2f} estimated"
        seconds = _step_seconds(folder / stage)
        of = f" of {config.batch_size}" if rows < config.batch_size else ""
        return Finding(
            "ok", stage, f"{STEPS} steps of {rows}{of} rows of {length} tokens: {seconds:.2f} s a step{memory}"
        )

    def _shapes(self) -> Iterator[Finding]:
        """A forward and a backward pass without numbers: what does not go together fails here as it would there."""
        for stage in self.recipe.stages:
            model = hollow_decoder(self.model).to(META)
            length = self.recipe.row_length(stage)
            hidden = model.hidden(torch.zeros((1, length), dtype=torch.int64, device=META))
            (hidden @ model.lm_head.weight.T).sum().backward()
            told = f"rows of {length} tokens through {self.model.num_hidden_layers} layers and back, as shapes only"
            yield Finding("ok", stage, told)

    def _few(self) -> Recipe:
        """The recipe with the rows that were read and a few steps; what cannot be read has a stand-in."""
        content = self.recipe.model_dump(mode="json")
        console = Console(quiet=True)
        tokenizer, _ = usable_tokenizer(self.recipe, console, None)
        content |= {"tokenizer": tokenizer.model_dump(mode="json"), "sample_prompts": content["sample_prompts"][:1]}
        content["model"]["vocab_size"] = max(self.model.vocabulary, tokenizer.vocab_size or 0)
        content["data"]["sources"] = self._sources("data", content["data"]["sources"], "max_documents")
        content["data"] |= {"tokens": None, "validation_fraction": max(0.05, self.recipe.data.validation_fraction)}
        for stage, config in self.recipe.stages.items():
            content[stage] |= self._few_steps(stage, config)
            if isinstance(config, PosttrainingConfig):
                content[stage]["examples"] = self._sources(stage, content[stage]["examples"], "max_examples")
                content[stage]["validation_fraction"] = max(0.05, config.validation_fraction)
        held = content["evaluate"]["sets"]
        for each in self.looked:
            if each.part.startswith("held out ") and each.sample is None:
                del held[each.part.removeprefix("held out ")]
        content["evaluate"] |= {"limit": 2, "max_new_tokens": 8, "probe": None}
        return parse_recipe(content, "the rehearsal")

    def _few_steps(self, stage: str, config: TrainingConfig) -> dict[str, Any]:
        rows, length = self.rows[stage], self.recipe.row_length(stage)
        total = config.steps or -(-(config.tokens or 0) // (config.batch_size * length))
        work = total * config.batch_size * length * flops_per_token(self.model, length)
        device = pick_device(self.device)
        pays = work > PAYS_AFTER * peak_flops(device, pick_dtype(config.precision, device))[0]
        return {
            "steps": STEPS, "tokens": None, "epochs": None,
            "batch_size": rows, "micro_batch_size": _at_once(config, rows),
            "log_every": 1, "eval_every": STEPS, "eval_batches": 1, "checkpoint_every": None, "patience": None,
            "compile": config.compile if config.compile != "auto" else device.type == "cuda" and pays, "trackers": [],
            "schedule": config.schedule.model_dump(mode="json") | {"warmup_steps": 1},
        }  # fmt: skip

    def _sources(self, part: str, written: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        """Those that can be read, as far as they were; a stand-in if there is none."""
        found = [each for each in self.looked if each.part == part]
        kept = [
            written[each.number]
            | {key: each.sample.rows, "weight": None}
            | ({"epochs": None} if part == "data" else {})
            for each in found
            if each.sample is not None
        ]
        if kept or not written:
            return kept
        return [stand_in_documents() if part == "data" else stand_in_examples(part)]

    # -- what the real run takes ----------------------------------------------------------------------------------

    def _steps(self, stage: str, tried: Path) -> int | None:
        """How many the real stage will take; None where the size of its data is not known."""
        config, length = self.recipe.stages[stage], self.recipe.row_length(stage)
        if config.epochs is None:
            return config.total_steps(0, length)
        part = "data" if stage == "pretrain" else stage
        samples = [each.sample for each in self.looked if each.part == part]
        if not samples or any(sample is None or sample.bytes_in_all is None for sample in samples):
            return None
        known = [sample for sample in samples if sample is not None]
        share = sum(each.bytes_in_all or 0 for each in known) / max(1, sum(each.bytes for each in known))
        place = (read_json(tried / "data.json") or {}).get(stage)
        if place is None:
            windows = share * FEW_TOKENS * sum(each.bytes for each in known) / length
        else:
            windows = share * read_json(tried / place / "manifest.json")["splits"]["train"]["windows"]["count"]
        return config.total_steps(max(1, round(windows)), length)

    def _time(self, tried: Path, sizes: dict[str, int | None]) -> Iterator[Finding]:
        """Hours and dollars, on the other machine or on this one."""
        seconds: dict[str, float] = {}
        dollars = 0.0
        for stage, steps in sizes.items():
            config = self.recipe.stages[stage]
            if steps is None:
                said = f"{config.epochs:g} epochs of data whose size is not known yet; its time is not counted"
                yield Finding("warning", stage, said)
            elif self.place is not None:
                finding, cost = self._elsewhere(self.place, stage, steps)
                if cost is not None:
                    seconds[stage], dollars = cost.seconds, dollars + (cost.dollars or 0.0)
                yield finding
            elif (tried / stage / "summary.json").exists():
                seconds[stage] = self._seconds(tried / stage, config, self.rows[stage], steps)
                yield Finding("ok", stage, f"{steps:,} steps here: {duration(seconds[stage])}")
        if seconds:
            yield self._sum(sum(seconds.values()), dollars)

    def _elsewhere(self, place: Place, stage: str, steps: int) -> tuple[Finding, Cost | None]:
        """A stage on another machine; no cost where nobody knows how fast it is there."""
        config, length = self.recipe.stages[stage], self.recipe.row_length(stage)
        work = flops_per_token(self.model, length, config.gradient_checkpointing)
        why, machine = "", None
        try:
            machine = place.machine(work)
        except UserError as error:
            why = " ".join(str(error).split())
        try:
            cost = training_cost(self.model, config, length, steps, machine or replace(place, mfu=1.0).machine(work))
        except UserError as error:
            return Finding("problem", stage, " ".join(str(error).split())), None
        memory = f"{cost.memory['total'] / 2**30:.1f} GiB on each"
        where = f"{steps:,} steps on {place.gpus} x {place.gpu.alias}"
        if machine is None:
            return Finding("warning", stage, f"{where}: {memory}; its time is not known: {why}"), None
        low, high = (duration(each) for each in cost.seconds_range)
        speed = f"{machine.mfu:.0%} of the peak: {machine.mfu_source}"
        told = f"{where}: {duration(cost.seconds)} ({low} to {high}; {speed}); {memory}"
        return Finding("ok", stage, told), cost

    def _seconds(self, folder: Path, config: TrainingConfig, rows: int, steps: int) -> float:
        """Of a whole stage here: its steps, validations (a forward pass is a third of a step) and checkpoints. What the
        optimizer takes is counted with each part of a batch, so that it is rather less."""
        step = _step_seconds(folder) * config.batch_size / rows
        save = float(read_object(folder / "ledger.json").get("seconds", {}).get("checkpoints", 0.0))
        validations = config.pauses("eval", 1, steps) * (config.eval_batches or 0)
        return steps * step + validations * step / 3 + config.pauses("checkpoint", 1, steps) * save

    def _sum(self, seconds: float, dollars: float) -> Finding:
        hours = f"{seconds / 3600:.2f} hours of training"
        if self.place is not None:
            if self.place.price is None:
                return Finding("ok", "in all", f"{hours}; no price of it is known (--price)")
            source = self.place.price_source
            return Finding("ok", "in all", f"{hours}, ${dollars:.2f} (${self.place.price:g} a GPU-hour: {source})")
        price = self.price or next((stage.price for stage in self.recipe.stages.values() if stage.price), None)
        cost = (
            "; no price is given (--price)"
            if price is None
            else f", ${price * seconds / 3600:.2f} at ${price:g} an hour"
        )
        return Finding("ok", "in all", hours + cost)

    def _disk(self, tried: Path, sizes: dict[str, int | None]) -> Iterator[Finding]:
        """Checkpoints of all stages, and shards: of what is read in training, once."""
        checkpoints, tokens = 0, 0.0
        for stage, steps in sizes.items():
            config, length = self.recipe.stages[stage], self.recipe.row_length(stage)
            checkpoints += space_needed(self.model, config, steps or STEPS)
            tokens += (steps or 0) * config.batch_size * length / max(1.0, config.epochs or 1.0)
        width = 2 if self.model.vocabulary <= 2**16 else 4
        shards = None if None in sizes.values() else int(width * tokens)
        yield from check_disk(self.run_dir, checkpoints, shards)


def _at_once(config: TrainingConfig, rows: int) -> int:
    """Rows of a micro-batch, where a batch has so many."""
    return min(rows, config.micro_batch_size) if isinstance(config.micro_batch_size, int) else rows


def _step_seconds(folder: Path) -> float:
    """Of the steps after the first."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    clock = [row["train_seconds"] for row in map(json.loads, lines) if "train_seconds" in row]
    laps = [after - before for before, after in pairwise(clock)]
    return float(median(laps or clock))
