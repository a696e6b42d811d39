"""What a trained model is measured on."""

from __future__ import annotations

from pydantic import Field, model_validator

from leveret.config import Config
from leveret.data.config import ExamplesConfig
from leveret.data.filters.config import HookPath
from leveret.inference.config import SamplingConfig


class ProbeConfig(Config):
    """A few questions of public benchmarks, asked at validations while the model trains."""

    benchmarks: list[str] = Field(default=["hellaswag"], min_length=1)
    """Their names, as of `leveret evaluate --suite`."""
    questions: int = Field(200, gt=0)
    """The first so many of each. With 200 a share is known to within 7 points either way, 19 times of 20."""
    bench: str | None = None
    """Folder of their jsonl files, relative to the recipe's folder. None: the hub."""
    every: int | None = Field(None, gt=0)
    """Only at validations after a multiple of so many steps. None: at each one (eval_every)."""


class EvaluateConfig(Config):
    """Evaluation after training. Loss, perplexity and bits per byte are always measured."""

    sets: dict[str, ExamplesConfig] = {}
    """Held-out sets, by name, whose answers must be matched exactly. The audit checks them against training."""
    tasks: dict[str, HookPath] = {}
    """Tasks of your own, by name: a function that gives questions, as `package.module:function` or `file.py:function`,
    the file relative to the recipe's folder; see leveret/evaluation/tasks.py. `--suite` knows them by these names."""
    max_new_tokens: int = Field(96, gt=0)
    """Most tokens of an answer."""
    beams: int = Field(1, gt=0)
    """Above 1, answers are the best of a beam search this wide; 1 is greedy."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """Of the beam search; see SamplingConfig."""
    batch_size: int = Field(64, gt=0)
    """Prompts answered at once."""
    limit: int | None = Field(None, gt=0)
    """Examples used of each set. None: all."""
    probe: ProbeConfig | None = None
    """Benchmarks looked at while the model trains; their shares of right answers join the metrics."""

    @property
    def decoding(self) -> SamplingConfig:
        """How answers are made: the most probable ones, nothing is drawn."""
        return SamplingConfig(max_new_tokens=self.max_new_tokens, beams=self.beams, length_penalty=self.length_penalty)

    @model_validator(mode="after")
    def _sets_are_whole(self) -> EvaluateConfig:
        for name, source in self.sets.items():
            if source.weight is not None:
                raise ValueError(f"set '{name}' has a weight, which is for training; take it out")
        return self
