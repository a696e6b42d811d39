"""How a model is trained: optimizer, schedule, batches, intervals. Every stage uses the same keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from leveret.config import Config
from leveret.hardware.config import Precision
from leveret.model.config import LoraConfig


def _rows_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError(f"give a number of rows or auto, not {value!r}")


def _as_word(value: Any) -> Any:
    """true and false, as older recipes say it, are full and none."""
    return ("full" if value else "none") if isinstance(value, bool) else value


_Words = Literal["none", "selective", "full"]
MicroBatch = Annotated[
    int | Literal["auto"],
    BeforeValidator(_rows_or_auto, json_schema_input_type=PositiveInt | Literal["auto"]),
]
Recompute = Annotated[_Words, BeforeValidator(_as_word, json_schema_input_type=_Words | bool)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter, 2019), or Muon for the blocks' matrices and AdamW for the rest.

    Matrices are decayed, norms and biases are not.
    """

    kind: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """Muon (Jordan et al., 2024) learns more from a token; its updates are scaled to AdamW's size. adamw8bit keeps
    AdamW's moments in a quarter of the memory (Dettmers et al., 2021)."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of matrices."""
    muon_lr: float | None = Field(None, gt=0)
    """muon: peak learning rate of the blocks' matrices. None: lr."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """muon: decay of the running mean of the gradient."""
    muon_iterations: int = Field(5, gt=0)
    """muon: Newton-Schulz iterations; 3 are nearly as good, and with small batches their time counts."""
    muon_variance: float | None = Field(None, gt=0, lt=1)
    """muon: decay of each neuron's mean square, by whose root its update is divided (NorMuon: Li et al., 2025). None:
    not done."""
    cautious_decay: bool = False
    """muon: weight decay only where the update goes towards zero too (Chen et al., 2025)."""
    decay_embeddings: bool = True
    """Whether the embedding tables are decayed too."""
    lr_scales: dict[str, float] = {}
    """Factors on the learning rate of the parameters whose name matches, such as {"embed_tokens.*": 5, "layers.0.*":
    0.5}; the first match counts, * stands for anything."""


class ScheduleConfig(Config):
    """The learning rate over the steps. It ends exactly when training ends."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine, linear, warm-up-stable-decay (Hu et al., 2024), or level."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up. None: warmup_fraction of all steps."""
    warmup_fraction: float = Field(0.02, ge=0, le=1)
    """Share of the steps that warm up, where warmup_steps is not given."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the last step."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """wsd: share of the steps that the final, linear decay takes."""


class GuardConfig(Config):
    """What is done when the loss or the gradients are no numbers. Such a step is always passed over."""

    max_skipped: int = Field(5, gt=0)
    """Steps passed over in a row, and still so when a line of metrics or a checkpoint is due, after which training
    goes back to the last good checkpoint, leaves their data out and lowers the rate."""
    rollback_lr: float = Field(0.5, gt=0, le=1)
    """Factor on the learning rate from then on, each time."""
    max_rollbacks: int = Field(3, ge=0)
    """How often in a stage; the next time it stops, and failure.md says why."""


class ParallelConfig(Config):
    """How several processes, started by torchrun, train one model. On one device nothing of it matters."""

    kind: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: the whole model on every device. fsdp: a share of every matrix on each (FSDP2), so that larger models fit.
    auto: ddp, unless weights, gradients and moments would fill more than half of a device's memory."""
    shard_ranks: int | None = Field(None, gt=0)
    """fsdp: devices that share one copy of the weights; other groups of as many hold the same (hybrid sharding).
    None: those of one machine."""
    patience: float = Field(300.0, gt=0)
    """Seconds that the others wait for a device that does not get on, before all are ended and its name is told."""


class TrainingConfig(Config):
    """One stage of training."""

    steps: int | None = Field(None, gt=0)
    """Optimizer updates. Give one of steps, tokens, epochs."""
    tokens: int | None = Field(None, gt=0)
    """Positions to read, padding included; rounded up to whole steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data; rounded up to whole steps."""
    batch_size: int = Field(16, gt=0)
    """Rows of a step."""
    micro_batch_size: MicroBatch | None = None
    """Rows of one forward and backward; a step accumulates as many as it needs. auto: as many as fit into the memory.
    None: the whole batch at once."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest norm of all gradients together. None: no clipping."""
    document_mask: bool = False
    """Keep the documents of a row from seeing each other. Fine-tuning always does."""
    precision: Precision = "auto"
    """dtype of the matrix products. auto: bf16 where the hardware has it, fp16 with scaled gradients on older GPUs,
    else fp32. fp8: the blocks' products in float8, on GPUs of capability 8.9 and later, with torchao."""
    compile: Literal[True, False, "auto"] = "auto"
    """Compile the model and its loss. auto: in runs that are long enough for it to pay. Where nothing can be compiled
    the run goes on without."""
    loss_kernel: Literal["chunked", "liger"] = "chunked"
    """What makes the loss out of hidden states: our own way, in chunks, or Liger's Triton kernel on a GPU (Hsu et
    al., 2024), which is untried."""
    gradient_checkpointing: Recompute = "none"
    """Activations made again in the backward pass instead of kept. full: all but the layers' inputs, least memory,
    about a third more work. selective: all but the results of matrix products and attention."""
    deterministic: bool = False
    """Only deterministic kernels, so that resuming is exact on CUDA too."""
    seed: int = 0
    """Names the order of the data, and the initial weights in pretraining."""
    guard: GuardConfig = GuardConfig()
    """What is done when the numbers go wrong."""
    parallel: ParallelConfig = ParallelConfig()
    """How several devices share the work."""
    log_every: int = Field(10, gt=0)
    """Steps between two lines of metrics."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between two validations. None: ten times in all."""
    eval_batches: int | None = Field(20, gt=0)
    """Batches of a validation, spread over the split. None: all of it."""
    patience: int | None = Field(None, gt=0)
    """Validations in a row without a better held-out loss, after which the stage ends early. With it the stage's model
    is that of the best validation, also where all steps were taken, and later checkpoints are deleted. None: never."""
    checkpoint_every: int | None = Field(None, gt=0)
    """Steps between two checkpoints. None: when validating."""
    keep_last: int = Field(2, gt=0)
    """Checkpoints kept, besides the best one."""

    price: float | None = Field(None, ge=0)
    """Dollars that an hour on this machine costs, for the cost in summary.json."""
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = []
    """Dashboards that are told what metrics.jsonl says; Weights & Biases without a network, unless WANDB_MODE says
    otherwise. The packages come with leveret[tracking]."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if sum(value is not None for value in (self.steps, self.tokens, self.epochs)) != 1:
            raise ValueError("give exactly one of steps, tokens and epochs")
        return self

    @model_validator(mode="after")
    def _saves_what_it_validates(self) -> TrainingConfig:
        saves, validates = self.checkpoint_every, self.eval_every
        if self.patience is not None and saves is not None and (validates is None or validates % saves):
            raise ValueError(
                f"patience keeps the best validated model, so every validation needs a checkpoint: leave "
                f"checkpoint_every {saves} out, or take a divisor of eval_every for it"
            )
        return self

    @property
    def adapters(self) -> LoraConfig | None:
        """What is learnt in place of the weights; None: the weights."""
        return None

    def total_steps(self, windows: int, sequence_length: int) -> int:
        """The number of updates over a split of that many windows."""
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return -(-self.tokens // (self.batch_size * sequence_length))
        assert self.epochs is not None
        return max(1, -int(-self.epochs * windows // self.batch_size))

    def every(self, what: Literal["eval", "checkpoint"], total: int) -> int:
        """Steps between two validations or checkpoints; one more comes after the last of all steps."""
        eval_every = self.eval_every or max(1, total // 10)
        return eval_every if what == "eval" else self.checkpoint_every or eval_every

    def pauses(self, what: Literal["eval", "checkpoint"], done: int, total: int) -> int:
        """How many validations or checkpoints come from step `done` on, its own among them."""
        every = self.every(what, total)
        return total // every - (done - 1) // every + (total % every > 0)
