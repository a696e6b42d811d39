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
    """Share of the examples, by a hash of the instruction, that measures the stage and is not trained on."""
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
