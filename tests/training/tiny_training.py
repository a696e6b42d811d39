"""A tiny model, tiny settings and what the tests of training share."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from leveret.data.batches import Batches
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import concatenated
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import find_checkpoint
from leveret.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from leveret.training.loop import Trainer
from leveret.training.metrics import read_metrics
from leveret.training.objective import NextToken
from leveret.training.plots import Painter

CPU = torch.device("cpu")
VOCABULARY = 23
LENGTH = 12


def document(number: int, length: int) -> list[int]:
    """A sequence with something to learn in it, made without any random generator."""
    ids = [number % VOCABULARY]
    for place in range(1, length):
        ids.append((ids[-1] * 5 + number + (place * place) % 3) % VOCABULARY)
    return ids


def plain_store(folder: Path) -> TokenStore:
    """Documents in two splits, their windows one after the other."""
    writer = ShardWriter(folder, VOCABULARY, 400)
    for number in range(90):
        writer.add("train" if number % 6 else "validation", document(number, 10 + number % 7), 20)
    writer.finish({n: concatenated(writer.starts(n), s.tokens, LENGTH) for n, s in writer.splits.items()}, {})
    return TokenStore(folder)


def decoder(**knobs: Any) -> Decoder:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.2,
    }
    torch.manual_seed(1)
    return Decoder(ModelConfig.model_validate(base | knobs))


def settings(**changes: Any) -> TrainingConfig:
    fields: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "precision": "fp32",
        "optimizer": OptimizerConfig(lr=0.01),
        "schedule": ScheduleConfig(warmup_steps=2, min_lr=0.001),
        "log_every": 1,
        "eval_every": 4,
        "seed": 3,
    }
    return TrainingConfig.model_validate(fields | changes)


def trainer(folder: Path, store: TokenStore, config: TrainingConfig, **changes: Any) -> Trainer:
    def batches(split: str) -> Batches:
        return Batches(store.split(split), config.batch_size, LENGTH, config.seed, tell_documents=config.document_mask)

    fields: dict[str, Any] = {
        "label": "test",
        "model": decoder(),
        "objective": NextToken(),
        "batches": batches("train"),
        "validation": batches("validation") if "validation" in store.manifest["splits"] else None,
        "config": config,
        "folder": folder,
        "device": CPU,
        "console": Console(file=io.StringIO()),
    }
    return Trainer(**(fields | changes))


def unpainted(patch: pytest.MonkeyPatch) -> None:
    """No CSV and no pictures, which would take most of a tiny run's time."""
    patch.setattr(Painter, "update", lambda self: None)
    patch.setattr(Painter, "finish", lambda self, say: None)


def figures(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics but for what a clock says."""
    clock = (
        "tokens_per_second",
        "train_seconds",
        "mfu",
        "peak_memory_bytes",
        "gpu_memory_bytes",
        "gpu_utilisation",
        "power_watts",
    )
    return [{key: value for key, value in row.items() if key not in clock} for row in read_metrics(folder)]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def weights(folder: Path, step: int | None = None) -> dict[str, Tensor]:
    found = find_checkpoint(folder / "checkpoints", step)
    assert found is not None
    return found.weights(decoder().config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
