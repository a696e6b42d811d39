"""Before the first step: how many rows go through at once, whether to compile, and one try of the largest micro-batch,
so that what does not fit or does not compile shows in the first seconds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leveret.data.batches import Batch
from leveret.errors import UserError
from leveret.hardware.memory import available_memory, is_out_of_memory
from leveret.hardware.peak import peak_flops
from leveret.model.counts import count_parameters, flops_per_token
from leveret.training.graphs import PAYS_AFTER, Graphs, cannot_compile
from leveret.training.memory import cuts, fitting_rows, optimizer_bytes, training_memory
from leveret.training.parallel import exchanging
from leveret.training.sharded import is_sharded

if TYPE_CHECKING:
    from leveret.training.loop import Trainer

Say = Callable[[str], None]

KEPT_FREE = 0.05
"""Share of a GPU's memory that is left free when the micro-batch is found by trying: memory in use has gaps."""


def settle(trainer: Trainer, steps: int, chosen: dict[str, Any], say: Say) -> None:
    """Sets the trainer's rows and graphs, and tries them.

    Args:
        steps: of the whole stage.
        chosen: what an earlier start of this run has chosen; it is kept to, so that the steps are the same.

    Raises:
        UserError: one micro-batch is too much for the memory.
    """
    config, device = trainer.config, trainer.device
    if config.micro_batch_size == "auto":
        before = chosen.get("micro_batch_size") if chosen.get("ranks", 1) == trainer.group.ranks else None
        trainer.rows = -trainer.group.agree(-find_rows(trainer, before))
        say(f"micro-batches of {trainer.rows} of {trainer.batches.share} rows, as many as fit into the memory")
    if trainer.group.agree(int(wants_compiling(trainer, steps, chosen.get("compiled")))):
        if lack := cannot_compile(device):
            say(f"not compiled: {lack}")
        else:
            trainer.graphs = Graphs()
            trainer.loss.compile(dynamic=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if device.type != "cpu" or trainer.graphs is not None:  # on a CPU uncompiled, the first step shows it as soon
        with memory_told(trainer):
            _try(trainer, say)


def _try(trainer: Trainer, say: Say) -> None:
    """The dry run; where compiling fails in it, once more without, and so for good."""
    if trainer.graphs is not None:
        try:
            dry_run(trainer, trainer.rows)
            trainer.graphs.note("dry run")
            return
        except Exception as error:
            if is_out_of_memory(error):
                raise
            say(f"not compiled: {' '.join(str(error).split())[:200]}")
        trainer.graphs = None
        torch.compiler.set_stance("force_eager")
    dry_run(trainer, trainer.rows)


def dry_run(trainer: Trainer, rows: int) -> None:
    """One forward and backward of a micro-batch that is full of tokens learnt from. Weights, gradients (there are none
    between steps) and random states are afterwards what they were."""
    shape = (rows, trainer.batches.length)
    ids = torch.zeros(shape, dtype=torch.int64)
    positions = documents = known = None
    if trainer.batches.tell_documents:
        positions, documents = torch.arange(shape[1]).repeat(rows, 1), torch.zeros_like(ids)
    if trainer.batches.known is not None:
        known = torch.zeros(rows, trainer.batches.most_documents)
    batch = Batch(ids, ids.clone(), positions, documents, known).counted().to(trainer.device)
    try:
        # Kept by DDP, so that a rank that lacks memory lets none of the others wait; what FSDP keeps cannot be dropped.
        with exchanging(trainer.loss, now=is_sharded(trainer.model.parameters())):
            with trainer.autocast():
                loss = trainer.loss(batch) / batch.weight
            loss.backward()
    finally:
        trainer.model.zero_grad(set_to_none=True)


@contextmanager
def memory_told(trainer: Trainer) -> Iterator[None]:
    """Running out of memory inside is a UserError that says what to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        stage, rows = trainer.label, trainer.rows
        ways = [f"{stage}.micro_batch_size: auto"] if rows > 1 else []
        if trainer.config.gradient_checkpointing != "full":
            ways.append(f"{stage}.gradient_checkpointing: full")
        raise UserError(
            f"the memory is too small for {rows} rows of {trainer.batches.length} tokens at once; "
            + (f"set {' or '.join(ways)}" if ways else "take shorter rows or a smaller model")
        ) from error


def find_rows(trainer: Trainer, before: int | None) -> int:
    """The largest cut of a batch that fits: on CUDA by trying, elsewhere from the estimate. MPS is untried.

    before: what this run has found when it began, which is not gone beyond.
    """
    config, device, share = trainer.config, trainer.device, trainer.batches.share
    if device.type == "cuda":
        _, whole = torch.cuda.mem_get_info(device)
        aside = optimizer_bytes(trainer.model.config, config) + int(KEPT_FREE * whole)
        return _tried_rows(trainer, before or share, aside if before is None else 0)  # resumed, its state is there
    if before is not None:
        return before
    weights = 4 * count_parameters(trainer.model.config).total  # are there already

    def needed(rows: int) -> int:
        model, length = trainer.model.config, trainer.batches.length
        return training_memory(model, config, length, rows, trainer.dtype, device)["total"] - weights

    return fitting_rows(share, needed, available_memory(device))


def _tried_rows(trainer: Trainer, most: int, aside: int) -> int:
    """The first cut whose dry run goes through with so many bytes set aside."""
    for rows in cuts(most):
        try:
            ballast: Tensor | None = torch.empty(aside, dtype=torch.uint8, device=trainer.device)
            dry_run(trainer, rows)
            return rows
        except torch.OutOfMemoryError:
            pass
        finally:
            ballast = None  # noqa: F841
            gc.collect()
            torch.cuda.empty_cache()
    return 1  # the real dry run, with nothing set aside, has the last word


def wants_compiling(trainer: Trainer, steps: int, before: bool | None) -> bool:
    """What the recipe says; for auto what this run did when it began, else whether the stage is long enough."""
    config, device = trainer.config, trainer.device
    if config.compile != "auto":
        return config.compile
    if before is not None:
        return before
    length = trainer.batches.length
    work = steps * trainer.batches.share * length * flops_per_token(trainer.model.config, length)
    return device.type in ("cpu", "cuda") and work > PAYS_AFTER * peak_flops(device, trainer.dtype)[0]
