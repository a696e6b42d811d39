"""Where texts and examples come from: files, a Hugging Face dataset, or a generator of ours."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from leveret.config import Config
from leveret.data.dedup import DedupConfig
from leveret.data.filters.config import FilterConfig
from leveret.data.hub import RetryConfig
from leveret.data.overlap import DecontaminateConfig

# Fields that mean something for one kind of origin only; the first of each must be given.
_BELONGS: dict[str, tuple[str, ...]] = {
    "files": ("paths",),
    "hub": ("name", "subset", "split", "revision"),
    "generated": ("generator", "options"),
}


class OriginConfig(Config):
    """What every source has in common: where its rows come from and under which licence."""

    kind: Literal["files", "hub", "generated"] = "files"
    """`files` on this machine, a Hugging Face dataset (`hub`), or a generator of this package (`generated`)."""
    paths: list[str] = Field(default=[])
    """Files, folders and globs, relative to the recipe's folder; read in this order, sorted within each."""
    name: str | None = None
    """Name of the Hugging Face dataset, or a local folder that its library can load."""
    subset: str | None = None
    """Configuration of the Hugging Face dataset, such as `sample-10BT`."""
    split: str = "train"
    """Split of the Hugging Face dataset."""
    revision: str | None = None
    """Commit, tag or branch of the Hugging Face dataset; without it the newest."""
    generator: str | None = None
    """Name of the generator."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of the generator."""
    licence: str | None = None
    """Licence of the texts, copied into the manifest."""

    @model_validator(mode="after")
    def _only_what_belongs(self) -> Self:
        required = _BELONGS[self.kind][0]
        if not getattr(self, required):
            raise ValueError(f"a source of kind '{self.kind}' needs '{required}'")
        for kind, fields in _BELONGS.items():
            for field in fields if kind != self.kind else ():
                # Compared with the default, not with "was given": a resolved recipe spells every field out.
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(
                        f"'{field}' belongs to a source of kind '{kind}', but this one is of kind '{self.kind}'"
                    )
        return self


class SourceConfig(OriginConfig):
    """One source of documents for the tokenizer or for pretraining."""

    column: str = Field(default="text", min_length=1)
    """Column or key that holds the text; .txt files have none and are one document each."""
    max_documents: PositiveInt | None = None
    """Read at most this many documents; without it, all."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the drawn training tokens, relative to the other sources' weights; all sources have one or none does."""
    epochs: float | None = Field(default=None, gt=0)
    """How often the source's training windows are drawn: whole passes, and a sample for the rest. None: once."""


ExampleFormat = Literal[
    "auto",
    "messages",
    "instruction-command",
    "prompt-completion",
    "instruction-response",
    "question-answer",
    "preference",
    "marked",
    "raw",
]


class ExamplesConfig(OriginConfig):
    """One source of examples for fine-tuning or evaluation.

    Among `paths`, `instructions.txt,commands.txt` is a pair of files aligned line by line.
    """

    format: ExampleFormat = "auto"
    """Fields to read an example from; `auto` takes the first format of which a row has all fields."""
    where: dict[str, list[str]] = {}
    """Keep only rows whose other fields have one of these values, such as {category: [open_qa, closed_qa]}; numbers and
    booleans as JSON writes them, in quotes."""
    max_examples: PositiveInt | None = None
    """Read at most this many examples; without it, all."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the drawn examples, relative to the other sources' weights; all sources have one or none does. Each
    example is drawn once at most, so the source that is smallest beside its weight bounds the others."""


class ExecutorConfig(Config):
    """Makes the token shards' parts beyond this process, with datatrove."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """datatrove's executor: processes here, a Slurm cluster, a Ray cluster. All must see the same folders."""
    tasks: PositiveInt = 1
    """Tasks that share the sources' files."""
    workers: PositiveInt | None = None
    """Tasks that run at the same time; without it, all."""
    address: str | None = None
    """Of the Ray cluster; without it, one on this machine is started."""
    partition: str = "cpu"
    """Slurm's partition."""
    time: str = "24:00:00"
    """Slurm's limit for a task, HH:MM:SS."""
    memory_gb: float = Field(default=2, gt=0)
    """Memory of a task, GB."""


class DataConfig(Config):
    """The corpus of pretraining and how it is cut into shards and windows."""

    sources: list[SourceConfig]
    """Where the documents come from, one source after the other. Empty: nobody knows, as of an imported model."""
    validation_fraction: float = Field(default=0.005, ge=0, lt=1)
    """Share of the documents, by a hash of their text, that measures the loss and is never trained on."""
    sequence_length: int | None = Field(default=None, gt=0)
    """Tokens of a window; without it, the model's context length."""
    document_format: str = Field(default="{text}{eos}", pattern=r"\{text\}")
    """What stands around each text; {bos} and {eos} are control tokens."""
    shard_tokens: PositiveInt = 10_000_000
    """Tokens of a shard file, but the last."""
    filters: list[FilterConfig] = Field(default=[])
    """What a document must pass, in this order."""
    decontaminate: DecontaminateConfig | None = None
    """Keeps evaluation sets out, after the filters."""
    dedup: DedupConfig | None = None
    """Leaves out documents that are there already, after the filters, across all sources."""
    packing: Literal["concatenate", "best-fit"] = "concatenate"
    """`concatenate`: windows over documents laid end to end. `best-fit`: documents cut only where longer than a window,
    and put together where they fit; a little slower to prepare and to load."""
    tokens: PositiveInt | None = None
    """Training tokens to draw in all: by the sources' weights, or without weights from all in the same proportion.
    Without it, every source once (or its epochs); with weights, as many as the sources hold."""
    retry: RetryConfig = RetryConfig()
    """How often and how patiently a read from the hub is tried again."""
    strict: bool = False
    """Stop at the first row that cannot be read, instead of leaving it out and counting it."""
    workers: PositiveInt | None = None
    """Processes that tokenise; without it one a core, and for small sources none but the main one."""
    executor: ExecutorConfig | None = None
    """Where the parts are made; without it, on this machine."""

    @model_validator(mode="after")
    def _weights_agree(self) -> Self:
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("some sources have a weight and some have none; give each one, or none")
        if any(weighted) and any(source.epochs is not None for source in self.sources):
            raise ValueError("a source's share is its weight or its epochs, not both")
        return self
