"""Post-training: training's keys, and where the examples come from."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from leveret.data.config import ExamplesConfig
from leveret.model.config import LoraConfig
from leveret.training.config import OptimizerConfig, TrainingConfig


class PosttrainingConfig(TrainingConfig):
    """What all stages after pretraining have in common."""

    answers: ClassVar[int] = 1
    """Answers to each prompt, which stand in one row."""

    examples: list[ExamplesConfig] = Field(min_length=1)
    """Sources of examples."""
    sequence_length: int | None = Field(None, gt=1)
    """Tokens of a packed row; an example that is longer is left out and counted. None: the context length."""
    validation_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of the examples, by a hash of the normalised instruction, that measures the stage and is not trained on."""
    drop_leaks: bool = False
    """Leave out of the examples what is held out in evaluate.sets, exactly, normalised or as a near-duplicate. false:
    refuse to train."""
    strict: bool = False
    """Stop at the first row that is no example, instead of leaving it out and counting it."""
    lora: LoraConfig | None = None
    """Learn small adapters beside frozen weights, in a fraction of the memory. None: learn all weights."""

    @model_validator(mode="after")
    def _weights_agree(self) -> PosttrainingConfig:
        if len({source.weight is None for source in self.examples}) > 1:
            raise ValueError("some examples have a weight and some have none; give each source one, or none")
        return self

    @model_validator(mode="after")
    def _adapters_go_with_the_rest(self) -> PosttrainingConfig:
        if self.lora is not None and self.precision == "fp8":
            raise ValueError("lora is not for precision fp8; take bf16")
        if self.lora is not None and self.parallel.kind == "fsdp":
            raise ValueError("lora is not for parallel.kind fsdp; take ddp")
        return self

    @property
    def adapters(self) -> LoraConfig | None:
        return self.lora


class FinetuneConfig(PosttrainingConfig):
    """Supervised fine-tuning: the loss is on the answers only, each with its end token."""

    too_long: Literal["drop", "truncate", "refuse"] = "drop"
    """What becomes of an example that is longer than a row. drop: it is left out and counted. truncate: its oldest
    turns go, then the end of its last prompt, never of an answer. refuse: nothing is trained."""


class PreferOptimizerConfig(OptimizerConfig):
    """An optimizer with the low rate that preferences need."""

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate. For models of tens of millions of parameters; for hundreds of millions 5e-6 is safer. A
    higher one soon makes both answers unlikely."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices. The base model is what weights are to stay near, not zero."""


class PreferConfig(PosttrainingConfig):
    """Learning from pairs of answers to one prompt, the better and the worse (DPO and its kin)."""

    answers: ClassVar[int] = 2

    form: Literal["dpo", "length-normalised", "reference-free"] = "dpo"
    """What a pair's margin is made of: log-probabilities against the base model's (Rafailov et al., 2023), those for
    each token of the answer (Lambert et al., 2024), or the latter without the base model (SimPO: Meng et al., 2024)."""
    beta: float | None = Field(None, gt=0)
    """Factor on the margin: the greater, the nearer the model stays to its base. None: 0.1 for dpo, 5 for
    length-normalised, 2 for reference-free."""
    margin: float | None = Field(None, ge=0)
    """By how much the chosen answer should lead, after beta. None: 1 for reference-free, else 0."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answer's own loss for each token, added to the pair's (Pang et al., 2024)."""
    sequence_length: int | None = Field(None, gt=1)
    """Tokens of a prompt with an answer; a pair where one of both is longer is left out and counted. Rows are twice as
    long. None: the context length."""
    optimizer: PreferOptimizerConfig = PreferOptimizerConfig()
    """The optimizer."""

    @model_validator(mode="after")
    def _losses_of_tokens(self) -> PreferConfig:
        if self.loss_kernel != "chunked":
            raise ValueError(f"loss_kernel {self.loss_kernel} sums over all answers; preferences need chunked")
        return self

    @property
    def the_beta(self) -> float:
        """beta, or the form's own."""
        return self.beta or {"dpo": 0.1, "length-normalised": 5.0, "reference-free": 2.0}[self.form]

    @property
    def the_margin(self) -> float:
        """margin, or the form's own."""
        return float(self.form == "reference-free") if self.margin is None else self.margin

    @property
    def has_reference(self) -> bool:
        return self.form != "reference-free"


class ReinforceOptimizerConfig(OptimizerConfig):
    """An optimizer with the low rate that rewards need."""

    lr: float = Field(5e-5, gt=0)
    """Peak learning rate. For models of tens of millions of parameters; for hundreds of millions 1e-6 to 1e-5."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices. The base model is what weights are to stay near, not zero."""


class ReinforceConfig(PosttrainingConfig):
    """Learning from rewards that can be checked, for answers that the model itself samples (GRPO)."""

    reward: Literal["auto", "answer", "shell"] = "auto"
    """answer: 1 for the example's own answer, white space aside. shell: 1 for a command that has the effect of the
    example's in a sandbox or is equal to it, 0.1 for one that bash can read at all. auto: shell where the example names
    a shell, as the generator's do."""
    form: Literal["grpo", "dr-grpo"] = "grpo"
    """grpo: a group's rewards are divided by their standard deviation, and an answer's tokens count by their mean (Shao
    et al., 2024). dr-grpo: neither, so that long wrong answers and all too easy prompts get no other weight (Liu et
    al., 2025)."""
    group_size: int = Field(8, gt=1)
    """Answers to each prompt, which are compared with each other."""
    batch_size: int = Field(64, gt=0)
    """Answers of a step, each in a row of its own; a multiple of group_size."""
    max_new_tokens: int = Field(64, gt=0)
    """Most tokens of an answer; one that has not ended by then gets nothing."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it when answers are sampled, and when what is learnt from them is computed."""
    kl: float = Field(0.0, ge=0)
    """Factor on the divergence from the base model, estimated token by token (Schulman, 2020), that is added to the
    loss. 0: none, as DAPO and Dr. GRPO do; then no copy of the base is kept."""
    sequence_length: int | None = Field(None, gt=1)
    """Tokens of a prompt with an answer: a prompt that leaves no room for max_new_tokens is left out and counted. None:
    the context length. Rows are as long as the longest prompt needs."""
    optimizer: ReinforceOptimizerConfig = ReinforceOptimizerConfig()
    """The optimizer."""
    log_every: int = Field(1, gt=0)
    """Steps between two lines of metrics; rewards are those of the step itself."""

    @model_validator(mode="after")
    def _goes_together(self) -> ReinforceConfig:
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        if self.tokens is not None:
            raise ValueError("how many tokens answers will have is not known; give steps or epochs")
        if self.patience is not None:
            raise ValueError("patience is for held-out losses, and what is measured here is a reward; leave it out")
        if self.parallel.kind == "fsdp":
            raise ValueError("parallel.kind fsdp is not for reinforce: each device samples with all weights; take ddp")
        if self.precision == "fp8":
            raise ValueError("precision fp8 is not for reinforce: single tokens cannot be sampled in it; take bf16")
        if self.loss_kernel != "chunked":
            raise ValueError(f"loss_kernel {self.loss_kernel} sums over all answers; rewards need chunked")
        return self

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.batch_size // self.group_size

    def total_steps(self, windows: int, sequence_length: int) -> int:
        """The number of updates over a split of that many prompts."""
        if self.epochs is None:
            return super().total_steps(windows, sequence_length)
        return max(1, -int(-self.epochs * windows // self.prompts))
