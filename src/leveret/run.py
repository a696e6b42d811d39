"""The stages of a recipe, in order.

    tokenizer -> prepare -> audit -> pretrain -> finetune -> prefer -> reinforce -> evaluate -> report

Each stage says which inputs it is made from. A stage that is done with these very inputs is not done again; one whose
inputs changed is stale, and is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from leveret.audit.leaks import without_leaks
from leveret.config import cache_dir
from leveret.data.config import ExamplesConfig, OriginConfig
from leveret.data.contamination import facts as contamination_facts
from leveret.data.examples import Example, examples, preferences
from leveret.data.filters.chain import facts as filter_facts
from leveret.data.filters.hooks import source_hash
from leveret.data.mixtures import Drawn, draw
from leveret.data.parts import Job
from leveret.data.prepare import prepare_documents, summary
from leveret.data.rows import Drop, overlook, refuse
from leveret.data.shards import TokenStore
from leveret.data.sources import Document, documents, fingerprint, source_facts
from leveret.errors import Refused, UserError
from leveret.posttraining.config import FinetuneConfig, PosttrainingConfig, PreferConfig, ReinforceConfig
from leveret.recipe import Recipe, anchored, digest, to_yaml
from leveret.rundir import RunDir, find_run, read_json, write_json
from leveret.tasks import generators
from leveret.tokenizer.template import template_text
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training import STAGES
from leveret.training.config import TrainingConfig
from leveret.training.lock import Lock

if TYPE_CHECKING:
    from leveret.training.parallel import Group

DATA_OF = {"pretrain": "the data", "finetune": "the examples"}
"""How what a stage reads is called; of the others: "prefer's examples"."""
PLACE_OF_WORK = {"workers", "executor", "retry"}
"""Keys of data that say who makes the shards, and change nothing in them."""


class Run:
    """A recipe at work in a run directory, perhaps by several processes of one `group`, of which the first does all but
    the training alone.

    Args:
        recipe: what to do.
        base_dir: where the recipe's relative paths start from.
        run_dir: where everything goes.
        console: where progress is shown.
        device: "auto" or a torch device.
        copy_data: keep the shards inside the run directory instead of the cache.
        start_from: another run (RUN[/STAGE][@STEP]) whose model, weights and tokenizer are taken; begins with `first`.
        first: the first stage that trains.
        profile: write where the time of a few training steps goes.
    """

    group: Group

    def __init__(
        self,
        recipe: Recipe,
        base_dir: Path,
        run_dir: Path,
        console: Console,
        device: str = "auto",
        copy_data: bool = False,
        start_from: str | None = None,
        first: str = "pretrain",
        profile: bool = False,
    ) -> None:
        self.recipe, self.base_dir, self.console = recipe, base_dir, console
        self.run = RunDir(run_dir)
        self.device = device
        self.copy_data = copy_data
        self.start_from = start_from
        skipped = STAGES[: STAGES.index(first)]
        self.training = {stage: config for stage, config in recipe.stages.items() if stage not in skipped}
        self.profile = profile
        self._drawn: dict[str, Drawn[Any]] = {}
        self.stages: dict[str, Callable[[], None]] = {
            "tokenizer": self.tokenizer,
            "prepare": self.prepare,
            "audit": self.audit,
            **{stage: partial(self.train, stage) for stage in STAGES},
            "evaluate": self.evaluate,
            "report": self.report,
        }

    def upto(self, last: str = "report") -> None:
        """Does every stage up to this one that is not already done.

        Raises:
            UserError: another process works in the run directory, or a stage cannot be done.
        """
        from leveret.training.parallel import join

        self._check_sizes()
        with join(self.device, next(iter(self.training.values())).parallel.patience) as self.group:
            if self.group.main:
                with Lock(self.run.path):
                    self._upto(last)
            else:
                self._join_in(last)

    def _join_in(self, last: str) -> None:
        """What the other ranks do: they train with the first, and wait for all else."""
        self.console.quiet = True
        for name, stage in self.stages.items():
            if name in STAGES:
                stage()
            self.group.wait(name)
            if name == last:
                return

    def _upto(self, last: str) -> None:
        path = self.run / "recipe.yaml"
        before = self.run.recipe_text() if path.exists() else None
        path.write_text(to_yaml(anchored(self.recipe, self.base_dir)), encoding="utf-8")
        for name, stage in self.stages.items():
            try:
                stage()
            except Refused:
                if before is not None:  # the run is still the one that it was
                    path.write_text(before, encoding="utf-8")
                raise
            self.group.wait(name)
            if name == last:
                return

    def _stage(self, name: str, inputs: dict[str, str], do: Callable[[], object]) -> None:
        """Does a stage unless it is done with these inputs; sets a stale one aside first."""
        if not self.group.main:
            if self.group.hear(f"the start of {name}") == "yes":
                do()
            return
        if self.run.is_done(name, inputs):
            self.group.tell(f"the start of {name}", "no")
            self.console.print(f"{name}: already done", style="dim")
            return
        reason = self.run.why_stale(name, inputs)
        if name in STAGES and self._goes_on(name, reason or ""):
            reason = None
        if reason:
            self.console.print(f"{name}: stale, because {reason}; doing it again")
            self.run.set_aside(name)
        self.run.begin(name, inputs)
        self.group.tell(f"the start of {name}", "yes")
        started = time.monotonic()
        try:
            do()
        except Exception as error:
            if not hasattr(error, "exit_code"):  # being asked to stop is no failure
                self.run.fail(name, error)
            raise
        self.run.finish(name, inputs, time.monotonic() - started)

    def _goes_on(self, stage: str, stale: str) -> bool:
        """Whether a training that has begun goes on with this recipe; says which keys changed."""
        from leveret.changes import may_go_on

        folder, recipe = self.run / stage, anchored(self.recipe, self.base_dir)
        goes_on, told = may_go_on(folder, stage, recipe, self.run.finished(stage), stale, partial(self.steps_of, stage))
        if told:
            self.console.print(f"{stage}: {told}", highlight=False)
        return goes_on

    def _check_sizes(self) -> None:
        """What can be known to be impossible before any work starts."""
        wanted, trained = self.recipe.model.vocab_size, self.recipe.tokenizer.vocab_size
        if wanted is not None and trained is not None and wanted < trained:
            raise UserError(f"model.vocab_size {wanted} is smaller than tokenizer.vocab_size {trained}")
        if not self.recipe.data.sources and ("pretrain" in self.training or self.recipe.tokenizer.trained):
            raise UserError("data.sources is empty; say which texts to train on: data.sources=[{paths: [FOLDER]}]")
        for config in self.training.values():
            if config.adapters is not None:
                from leveret.model.lora import adapted

                adapted(self.recipe.model.with_vocabulary(1), config.adapters)

    # -- tokenizer ------------------------------------------------------------------------------------------------

    def corpus(self) -> Iterator[Document]:
        return corpus_of(self.recipe, self.base_dir)

    def _id_of(self, sources: Iterable[OriginConfig]) -> str:
        """A name for the content of these sources."""
        return digest([source_id(source, self.base_dir) for source in sources])

    def tokenizer(self) -> None:
        from leveret.tokenizer.load import load_tokenizer
        from leveret.tokenizer.train import train_tokenizer

        config = self.recipe.tokenizer

        def do() -> None:
            if self.start_from is not None:
                made = self._taken_tokenizer(self.start_from)
            elif config.trained:
                self.console.print(f"tokenizer: training {config.kind} with {config.vocab_size} entries")
                made = train_tokenizer(config, (document.text for document in self.corpus()))
            else:
                made = load_tokenizer(config, self.base_dir)
            made.save(self.run / "tokenizer", model_max_length=self.recipe.model.max_position_embeddings)

        self._stage("tokenizer", self._tokenizer_inputs(), do)

    def _tokenizer_inputs(self) -> dict[str, str]:
        config = self.recipe.tokenizer
        if self.start_from is not None:
            return {"the base run's tokenizer": self._taken_tokenizer(self.start_from).content_hash}
        corpus = {"the corpus": self._id_of(self.recipe.data.sources)} if config.trained else {}
        return {"the tokenizer's recipe": digest(config)} | corpus

    def has_tokenizer(self) -> bool:
        """Whether the run has the tokenizer that its recipe means."""
        return self.run.is_done("tokenizer", self._tokenizer_inputs())

    def _taken_tokenizer(self, reference: str) -> Tokenizer:
        """Training another run's weights takes its tokenizer too."""
        taken = Tokenizer.load(find_run(reference)[0] / "tokenizer")
        if (name := self.recipe.tokenizer.template) is not None:  # a base model's may have none
            taken = Tokenizer(taken.definition, taken.roles, template_text(name))
        return taken

    def load_tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run / "tokenizer")

    # -- data -----------------------------------------------------------------------------------------------------

    def examples_of(self, sources: Iterable[ExamplesConfig]) -> Iterator[Example]:
        """The examples of held-out sets, all of them: a row that is none is refused."""
        return chain.from_iterable(examples(source, self.base_dir, generators.EXAMPLES) for source in sources)

    def held_out(self) -> list[Example]:
        """The examples of all evaluation sets."""
        return list(self.examples_of(self.recipe.evaluate.sets.values()))

    def drawn(self, stage: str) -> Drawn[Any]:
        """What a stage after pretraining learns from, by its sources' weights, and what became of their rows: examples,
        or preferences. Kept until the audit has seen it, so that nothing is read and searched for leaks twice."""
        if stage not in self._drawn:
            self._drawn[stage] = self._draw(stage)
        return self._drawn[stage]

    def _draw(self, stage: str) -> Drawn[Any]:
        config = self.recipe.tuning[stage]
        in_pairs = isinstance(config, PreferConfig)

        def read(source: ExamplesConfig, drop: Drop) -> Iterator[Any]:
            if in_pairs:
                return preferences(source, self.base_dir, generators.PREFERENCES, drop)
            return examples(source, self.base_dir, generators.EXAMPLES, drop)

        drawn = draw(config.examples, read, config.strict)
        if not config.drop_leaks:
            return drawn
        return without_leaks(drawn, self.held_out(), lambda item: item.example if in_pairs else item)

    def trained_on(self, stage: str) -> list[Example]:
        """What a stage teaches to answer; of preferences the chosen answers."""
        items = self.drawn(stage).items
        return [pair.example for pair in items] if isinstance(self.recipe.tuning[stage], PreferConfig) else items

    def _shard_keys(self, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
        """What the shards of each training stage are made from: equal keys, equal shards."""
        recipe, keys = self.recipe, {}
        for stage, config in self.training.items():
            keys[stage] = {"tokenizer": tokenizer.content_hash, "length": recipe.row_length(stage)}
            if isinstance(config, PosttrainingConfig):
                keys[stage] |= {"sources": self._id_of(config.examples), "validation": config.validation_fraction}
                keys[stage] |= {"strict": config.strict}
                if isinstance(config, FinetuneConfig):
                    keys[stage] |= {"too_long": config.too_long}
                if isinstance(config, ReinforceConfig):
                    keys[stage] |= {"max_new_tokens": config.max_new_tokens}
                if config.drop_leaks:
                    keys[stage] |= {"held out": self._id_of(recipe.evaluate.sets.values())}
            else:
                keys[stage] |= {
                    "rules": self._rules(),
                    "data": recipe.data.model_dump(mode="json", exclude={"sources", *PLACE_OF_WORK}),
                    "sources": self._id_of(recipe.data.sources),
                }
        return keys

    def prepare(self) -> None:
        tokenizer = self.load_tokenizer()
        keys = self._shard_keys(tokenizer)
        inputs = {"the tokenizer": tokenizer.content_hash, "its place": str(self.copy_data)}
        inputs |= {DATA_OF.get(stage, f"{stage}'s examples"): digest(key) for stage, key in keys.items()}

        def do() -> None:
            places = {}
            for stage, key in keys.items():
                places[stage] = self._place(self._shards_of(stage, key, tokenizer))
            write_json(self.run / "data.json", places)

        if not self._shards_are_there():
            self.run.begin("prepare", inputs)
        self._stage("prepare", inputs, do)

    def packed(self, stage: str) -> TokenStore:
        """The shards of one stage after pretraining, written if they are not there; preparing all finds them later."""
        tokenizer = self.load_tokenizer()
        return TokenStore(self._shards_of(stage, self._shard_keys(tokenizer)[stage], tokenizer), tokenizer.content_hash)

    def _shards_of(self, stage: str, key: dict[str, Any], tokenizer: Tokenizer) -> Path:
        folder = (self.run / "shards" if self.copy_data else cache_dir() / "shards") / f"{stage}-{digest(key)}"
        if not (folder / "manifest.json").is_file():
            self.console.print(f"prepare: writing {stage} shards")
            self._tokenise(tokenizer, folder) if stage == "pretrain" else self._pack(stage, tokenizer, folder)
        return folder

    def _facts(self, tokenizer: Tokenizer, sources: Iterable[OriginConfig]) -> dict[str, Any]:
        """What a manifest says of where its tokens come from."""
        return {
            "tokenizer": tokenizer.content_hash,
            "sources": [source_facts(source, self.base_dir) for source in sources],
        }

    def _rules(self) -> dict[str, Any]:
        """What decides which documents stay: the filters, with a user's own code, and the evaluation sets."""
        data = self.recipe.data
        sets = data.decontaminate
        return {
            "filters": filter_facts(data.filters, self.base_dir),
            "decontaminate": None if sets is None else contamination_facts(sets, self.base_dir),
        }

    def _tokenise(self, tokenizer: Tokenizer, folder: Path) -> None:
        data, length = self.recipe.data, self.recipe.row_length()
        job, facts = Job(tokenizer, data, self.base_dir), self._facts(tokenizer, data.sources) | self._rules()
        prepare_documents(job, generators.DOCUMENTS, length, folder, facts, self.console)
        self.console.print(f"prepare: {summary(TokenStore(folder).manifest)}", highlight=False)

    def _pack(self, stage: str, tokenizer: Tokenizer, folder: Path) -> None:
        from leveret.posttraining.lengths import told
        from leveret.posttraining.packing import write_examples_as_shards
        from leveret.posttraining.pairs import write_pairs_as_shards
        from leveret.posttraining.prompts import write_prompts_as_shards

        config, length = self.recipe.tuning[stage], self.recipe.document_length(stage)
        in_pairs = isinstance(config, PreferConfig)
        write: Callable[..., dict[str, Any]] = write_pairs_as_shards if in_pairs else write_examples_as_shards
        if isinstance(config, ReinforceConfig):
            write = partial(write_prompts_as_shards, max_new_tokens=config.max_new_tokens)
        drawn = self.drawn(stage)
        for line in drawn.lines():
            self.console.print(f"prepare: {line}", highlight=False, markup=False, soft_wrap=True)
        facts = self._facts(tokenizer, config.examples) | {"drawn": drawn.facts(), "dropped_leaks": drawn.leaks}
        policy = {"too_long": config.too_long} if isinstance(config, FinetuneConfig) else {}
        counts = write(drawn.items, tokenizer, folder, length, config.validation_fraction, facts, **policy)
        if lengths := told(counts, length, "pairs with an answer" if in_pairs else "examples"):
            self.console.print(f"prepare: {lengths}", highlight=False)
        if near := counts["near_validation"]:
            self.console.print(f"prepare: left out {near} that are near-duplicates of some to validate on")

    def _place(self, folder: Path) -> str:
        """How data.json names a folder: relative if it is inside the run."""
        return str(folder.relative_to(self.run.path)) if self.copy_data else str(folder)

    def _shards_are_there(self) -> bool:
        places = read_json(self.run / "data.json") or {}
        return all((self.run / place / "manifest.json").is_file() for place in places.values())

    def store(self, stage: str) -> TokenStore:
        """The shards of a stage."""
        places = read_json(self.run / "data.json") or {}
        if stage not in places:
            raise UserError(f"{self.run.path} has no data for {stage} yet; run `leveret prepare` first")
        return TokenStore(self.run / places[stage], self.load_tokenizer().content_hash)

    def steps_of(self, stage: str, config: TrainingConfig) -> int:
        """How many steps a stage would take with that config."""
        return config.total_steps(len(self.store(stage).split("train").windows), self.recipe.row_length(stage))

    # -- audit ----------------------------------------------------------------------------------------------------

    def audit(self) -> None:
        """Refuses to go on when what is trained on, or its tokenizer, is not what was meant."""
        from leveret.audit.stage import audit_before_training

        recipe = self.recipe
        tuning = [source for config in recipe.tuning.values() for source in config.examples]
        every = [*recipe.data.sources, *tuning, *recipe.evaluate.sets.values()]
        shards = {stage: self.store(stage).manifest for stage in self.training}
        inputs = {"the data or the held-out sets": digest([self._id_of(every), shards])}
        if dropping := [stage for stage, config in recipe.tuning.items() if config.drop_leaks]:
            inputs |= {"drop_leaks": ", ".join(dropping)}

        def do() -> None:
            self.console.print(f"audit: {audit_before_training(self)}")

        self._stage("audit", inputs, do)
        self._drawn.clear()

    # -- training -------------------------------------------------------------------------------------------------

    def train(self, stage: str) -> None:
        """A stage that trains, if the recipe has it, from the model of the one before."""
        from leveret.changes import training_id
        from leveret.stages import base_checkpoint, run_training

        if stage not in self.training:
            return
        base = base_checkpoint(self, stage)
        start = {"the model": digest(self.recipe.model)} if base is None else {"the base model": base.weights_sha256}
        inputs = start | {
            DATA_OF.get(stage, f"{stage}'s examples"): digest(self.store(stage).manifest),
            f"{stage}'s recipe": training_id(self.training[stage]),
        }
        self._stage(stage, inputs, lambda: run_training(self, stage, base))

    def evaluate(self) -> None:
        from leveret.api import load_model
        from leveret.stages import evaluate_run

        stage = self.run.last_trained()
        model = load_model(f"{self.run.path}/{stage}", self.device)
        config = self.recipe.evaluate
        inputs = {
            "the model": model.weights_sha256,
            "evaluate's recipe": digest(config.model_dump(exclude={"sets"}) | {"sets": list(config.sets)}),
            "the held-out sets": self._id_of(config.sets.values()),
        }
        if config.tasks:
            inputs |= {"its tasks": digest([source_hash(path, self.base_dir) for path in config.tasks.values()])}
        self._stage("evaluate", inputs, lambda: evaluate_run(self, model, config))

    def report(self) -> None:
        from leveret.audit.stage import audit_after_training
        from leveret.report import write_report

        planned = {stage: self.steps_of(stage, config) for stage, config in self.training.items()}
        audit_after_training(self.run, self.recipe, planned)
        path = write_report(self.run, self.recipe)
        self.console.print(f"report: {path}")


def corpus_of(recipe: Recipe, base_dir: Path) -> Iterator[Document]:
    """The documents of a recipe's pretraining as they are read, source after source.

    What cannot be read is left out, if the recipe is not strict; preparing the data counts it.
    """
    drop, retry = refuse if recipe.data.strict else overlook, recipe.data.retry
    return chain.from_iterable(
        documents(each, base_dir, generators.DOCUMENTS, drop, retry=retry) for each in recipe.data.sources
    )


def source_id(source: OriginConfig, base_dir: Path) -> str:
    """A name for a source's content; for a generated one its generator's version is part of it."""
    version = generators.version() if source.kind == "generated" else ""
    return fingerprint(source, base_dir) + version
