"""Who takes part in train_speed.py: our step, the same step around other tools' models, and matrix products alone.

Each way is a function of a Job that gives the number of parameters and the step. Peers take their tool's own settings:
bf16 autocast where the hardware has it, SDPA, its own loss, gradients clipped to 1, fused AdamW.

Letters in comments: B rows, T tokens, H heads, D head width.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from leveret.data.batches import Batch, Batches
from leveret.data.shards import TokenStore
from leveret.hardware.allocator import keep_freed_memory
from leveret.hardware.device import pick_dtype
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.model.decoder import Decoder, hollow_decoder
from leveret.training.config import TrainingConfig
from leveret.training.dry_run import settle
from leveret.training.loop import Trainer, set_up, train_step
from leveret.training.objective import NextToken

LIMIT = "matrix products"
Step = Callable[[Batch], Tensor]
"""One update on a batch, which gives the loss."""


@dataclass(frozen=True)
class Job:
    """What a contestant is told: a model like this one, batches of that many rows out of `shards`."""

    way: str
    compiled: bool
    config: ModelConfig
    rows: int
    shards: Path
    device_name: str
    training: TrainingConfig = field(default_factory=partial(TrainingConfig, steps=1))
    """Ours: optimizer and what else a recipe says."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        return pick_dtype("auto", self.device)

    @property
    def name(self) -> str:
        return self.way if self.way == LIMIT else f"{self.way}, {'compiled' if self.compiled else 'eager'}"

    @property
    def length(self) -> int:
        return self.config.max_position_embeddings

    def batches(self) -> Batches:
        return Batches(TokenStore(self.shards).split("train"), self.rows, self.length)


def leveret(job: Job) -> tuple[int, Step]:
    """Our own step, prepared as a stage of a run prepares it."""
    if job.device.type == "cpu":
        keep_freed_memory()
    config = job.training.model_copy(update={"batch_size": job.rows, "compile": job.compiled})
    model = Decoder(job.config).to(job.device)
    trainer = Trainer("speed", model, NextToken(), job.batches(), None, config, job.shards, job.device, Console())
    optimizer = set_up(trainer)
    settle(trainer, 1, {}, print)
    gc.freeze()
    gc.disable()

    def step(batch: Batch) -> Tensor:
        parts = [part.to(job.device) for part in trainer.micro_batches(batch)]
        return train_step(trainer, optimizer, parts, config.optimizer.lr)[0]

    return parameters(model), step


def peer(
    job: Job,
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    rate: Callable[[], float] = lambda: 3e-4,
) -> tuple[int, Step]:
    """The step that all of them take: autocast, backward, gradients clipped to 1, fused AdamW that decays matrices."""
    model = model.to(job.device).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=job.device.type in ("cpu", "cuda"))
    if job.compiled:
        model.compile(dynamic=False)

    def step(batch: Batch) -> Tensor:
        batch = batch.to(job.device)
        with torch.autocast(job.device.type, job.dtype, enabled=job.dtype is not torch.float32):
            value = loss(model, batch.inputs, batch.targets)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return parameters(model), step


def transformers(job: Job) -> tuple[int, Step]:
    """The class nearest to the model: GPT-2 for one with LayerNorm, else Llama."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    same = {name: getattr(job.config, name) for name in names} | {"attn_implementation": "sdpa", "use_cache": False}
    if job.config.norm == "layer":
        undropped = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**same, **undropped, n_inner=job.config.intermediate_size))
    else:
        model = LlamaForCausalLM(LlamaConfig(**same, num_key_value_heads=job.config.kv_heads, tie_word_embeddings=True,
                                             intermediate_size=job.config.intermediate_size))  # fmt: skip
    return peer(job, model, lambda model, inputs, _: model(input_ids=inputs, labels=inputs).loss)


def litgpt(job: Job) -> tuple[int, Step]:
    """Its model, head tied as ours is, and the loss of its pretraining, which is outside what is compiled."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    c = job.config
    model = GPT(Config(n_layer=c.num_hidden_layers, n_embd=c.hidden_size, n_head=c.num_attention_heads,
                       n_query_groups=c.kv_heads, padded_vocab_size=c.vocabulary, vocab_size=c.vocabulary,
                       block_size=c.max_position_embeddings, intermediate_size=c.intermediate_size, bias=False,
                       mlp_class_name="LLaMAMLP", norm_class_name="RMSNorm", norm_eps=c.norm_eps,
                       rotary_percentage=1.0, parallel_residual=False))  # fmt: skip
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    return peer(job, model, lambda model, inputs, targets: chunked_cross_entropy(model(inputs), targets))


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, H, D]
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)  # [B, H, T, D]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class PlainGPT2(nn.Module):
    """GPT-2 without biases, as nanoGPT trains it: learned positions, LayerNorm, GELU, the head tied to the table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        blocks = (PlainBlock(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_gpt2(job: Job) -> tuple[int, Step]:
    return peer(job, PlainGPT2(job.config), lambda model, inputs, targets: model(inputs, targets))


def products(job: Job) -> tuple[int, Step]:
    """The matrix products of one update, nothing else: three for every linear layer, six for every attention."""
    if job.device.type == "cpu":
        keep_freed_memory()
    config, length = job.config, job.length
    new = partial(torch.randn, dtype=job.dtype, device=job.device)
    linears = Counter(m.weight.shape for m in hollow_decoder(config).modules() if isinstance(m, nn.Linear))
    pairs: list[tuple[Tensor, Tensor]] = []
    for (out, inner), count in linears.items():
        x, weight, gradient = new(job.rows * length, inner), new(out, inner), new(job.rows * length, out)
        pairs += [(x, weight.t()), (gradient, weight), (gradient.t(), x)] * count
    heads = job.rows * config.num_attention_heads
    q, scores = new(heads, length, config.head_width), new(heads, length, length)
    to_scores, from_scores, from_columns = (q, q.mT), (scores, q), (scores.mT, q)
    pairs += [*[to_scores] * 2, *[from_scores] * 2, *[from_columns] * 2] * config.num_hidden_layers

    def step(_: Batch) -> Tensor:
        for a, b in pairs:
            a @ b
        return torch.zeros(())

    return count_parameters(config).total, step


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


WAYS: dict[str, Callable[[Job], tuple[int, Step]]] = {
    LIMIT: products,
    "leveret": leveret,
    "transformers": transformers,
    "litgpt": litgpt,
    "plain GPT-2": plain_gpt2,
}
