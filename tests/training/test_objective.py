"""The whole loss: its value against its definition, its gradients against finite differences."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from leveret.data.batches import IGNORED, Batch
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training import cross_entropy
from leveret.training.objective import NextToken, mean_loss

CPU = torch.device("cpu")


def decoder(dtype: torch.dtype = torch.float64, **knobs: Any) -> Decoder:
    base = {
        "vocab_size": 7,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 6,
        "max_position_embeddings": 6,
    }
    model = Decoder(ModelConfig.model_validate(base | knobs)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn * 0.4 + (parameter.dim() == 1))
    return model


def make_batch(rows: int = 3, tokens: int = 6, seed: int = 0, tell: bool = False) -> Batch:
    """Rows with targets left out here and there; with tell, of two documents each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(7, (rows, tokens), generator=generator)
    targets = torch.randint(7, (rows, tokens), generator=generator)
    targets[0, 2] = targets[-1, -2:] = IGNORED
    if not tell:
        return Batch(inputs, targets)
    places = torch.tensor([0, 1, 2, 3, 0, 1])
    documents = torch.tensor([0, 0, 0, 0, 1, 1])
    return Batch(inputs, targets, places.expand(rows, -1), documents.expand(rows, -1))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tinyllm": {"rope_layout": "interleaved", "residual": "parallel"},
    "smallm": {"position": "learned", "residual": "parallel-shared-norm", "num_key_value_heads": 1},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
    "the rest": {
        "mlp": "relu2",
        "qk_norm": True,
        "logit_softcap": 3.0,
        "sliding_window": 3,
        "tie_word_embeddings": False,
        "num_key_value_heads": 1,
    },
    "our own": {
        "value_embeddings": True,
        "value_residual": True,
        "residual_scales": True,
        "rope_fraction": 0.5,
        "sliding_window": 2,
        "window_pattern": "SL",
        "num_hidden_layers": 3,
    },
}


@pytest.mark.parametrize("tell", [False, True], ids=["one document", "two documents"])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_against_finite_differences(name: str, tell: bool) -> None:
    """A random direction for every parameter: the slope of the mean loss along it, in float64."""
    model, batch, objective = decoder(**SHAPES[name]), make_batch(tell=tell), NextToken()

    def mean() -> Tensor:
        return objective.loss(model, batch) / objective.weight(batch)

    found = gradients(model, mean())
    assert found.keys() == dict(model.named_parameters()).keys()
    generator = torch.Generator().manual_seed(1)
    size = 1e-5
    for key, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=size)
            above = mean()
            parameter.add_(direction, alpha=-2 * size)
            below = mean()
            parameter.add_(direction, alpha=size)
        slope = float(above - below) / (2 * size)
        expected = float((found[key] * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-8), key


def test_every_gradient_of_a_tiny_model() -> None:
    """Each number on its own."""
    model = decoder(hidden_size=4, num_hidden_layers=1, intermediate_size=3, residual="parallel")
    batch, objective = make_batch(rows=2), NextToken()
    found = gradients(model, objective.loss(model, batch))
    size = 1e-5
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            numbers = parameter.view(-1)
            slopes = []
            for i in range(len(numbers)):
                before = float(numbers[i])
                numbers[i] = before + size
                above = objective.loss(model, batch)
                numbers[i] = before - size
                below = objective.loss(model, batch)
                numbers[i] = before
                slopes.append(float(above - below) / (2 * size))
            expected = torch.tensor(slopes, dtype=torch.float64).view_as(parameter)
            assert torch.allclose(found[key], expected, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("tell", [False, True])
@pytest.mark.parametrize("name", ["llama", "smallm"])
def test_gradient_checkpointing_changes_no_gradient(name: str, tell: bool) -> None:
    model, batch = decoder(torch.float32, **SHAPES[name]), make_batch(tell=tell)
    model.train()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.layers[0].register_forward_pre_hook(count)
    found = []
    for recompute in ("none", "selective", "full"):
        model.gradient_checkpointing = recompute
        found.append(gradients(model, NextToken().loss(model, batch)))
    assert calls == 5, "once without, and with it once more in the backward pass"
    for recomputed in found[1:]:
        assert found[0].keys() == recomputed.keys()
        assert all(torch.equal(found[0][key], recomputed[key]) for key in recomputed)


def test_the_loss_is_the_sum_of_minus_log_probabilities() -> None:
    model, batch = decoder(), make_batch()
    with torch.no_grad():
        shares = model(batch.inputs).softmax(-1)
        expected, learnt = 0.0, 0
        for row in range(3):
            for token, target in enumerate(batch.targets[row].tolist()):
                if target != IGNORED:
                    expected -= float(shares[row, token, target].log())
                    learnt += 1
        assert float(NextToken().loss(model, batch)) == pytest.approx(expected, rel=1e-12)
    assert NextToken().weight(batch) == learnt == 15


class Shapes(TorchDispatchMode):
    """Notes the largest result whose last dimension is the vocabulary's."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 2 and out.shape[1] == 7:
            self.rows = max(self.rows, len(out))
        return out


@pytest.mark.parametrize("chunk", [100, 4])
def test_logits_are_made_where_something_is_learnt_a_chunk_at_a_time(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_NUMBERS, "cpu", chunk * 7)
    model, batch = decoder(hidden_size=4), make_batch()
    for gradient in (False, True):
        with Shapes() as shapes, torch.set_grad_enabled(gradient):
            NextToken().loss(model, batch)
        assert shapes.rows == min(chunk, 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_chunked_equals_plain(cap: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, for chunks that do not divide the rows, with targets left out."""
    monkeypatch.setitem(cross_entropy.CHUNK_NUMBERS, "cpu", 5 * 50)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(50, (23,), generator=generator)
    targets[[2, 7, 22]] = IGNORED

    def plain() -> Tensor:
        logits = F.linear(hidden, weight).float()
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    def chunked() -> Tensor:
        return cross_entropy.linear_cross_entropy(hidden, weight, targets, IGNORED, cap)

    results = []
    for function in (plain, chunked):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            loss = function()
        results.append((loss, *torch.autograd.grad(loss / 20, (hidden, weight))))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        assert float(chunked()) == pytest.approx(float(results[1][0]), rel=1e-6)
    close = 1e-5 if dtype is torch.float32 else 0.02
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() < close * max(1, a.abs().max().item())


def test_ligers_kernel_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        NextToken("liger").loss(decoder(), make_batch())


def test_the_sum_is_made_in_float32_at_least() -> None:
    model = decoder(torch.float32)
    batch = make_batch(rows=2)
    with torch.no_grad():
        exact = NextToken().loss(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = NextToken().loss(model, batch)
    assert exact.dtype == rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.05)
    assert float(rough) != float(exact)
    with torch.no_grad():
        assert NextToken().loss(model.bfloat16(), batch).dtype == torch.float32


@pytest.mark.parametrize("window", [None, 2])
def test_documents_are_kept_apart_in_the_loss(window: int | None) -> None:
    """A packed row costs what its documents cost alone, and without the mask it would not."""
    model, batch = decoder(sliding_window=window), make_batch(tell=True)
    with torch.no_grad():
        packed = NextToken().loss(model, batch)
        alone = sum(
            NextToken().loss(model, Batch(batch.inputs[:, a:b], batch.targets[:, a:b])) for a, b in ((0, 4), (4, 6))
        )
        open_row = NextToken().loss(model, Batch(batch.inputs, batch.targets))
    assert float(packed) == pytest.approx(float(alone), rel=1e-6)
    assert abs(float(packed) - float(open_row)) > 1e-3


def test_what_is_not_learnt_from_does_not_matter() -> None:
    """Padding after the end: other ids there change neither the loss nor any gradient."""
    model = decoder()
    for tell in (False, True):
        batch = make_batch(tell=tell)
        batch.targets[:, 4:] = IGNORED
        other = batch.inputs.clone()
        other[:, 4:] = (other[:, 4:] + 3) % 7
        changed = Batch(other, batch.targets, batch.positions, batch.documents)
        losses = [NextToken().loss(model, each) for each in (batch, changed)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
        before, after = (gradients(model, loss) for loss in losses)
        assert all(torch.allclose(before[key], after[key], rtol=1e-9, atol=1e-12) for key in before)


def test_micro_batches_give_the_gradients_of_the_batch() -> None:
    """Summed and divided by the weight of the whole, however unequal the weights of the parts."""
    model, batch, objective = decoder(), make_batch(rows=5), NextToken()
    batch.targets[1] = IGNORED
    whole = gradients(model, objective.loss(model, batch) / objective.weight(batch))
    for rows in (1, 2, 3):
        parts = batch.split(rows)
        loss = sum(objective.loss(model, part) / objective.weight(batch) for part in parts)
        assert isinstance(loss, Tensor)
        in_parts = gradients(model, loss)
        assert all(torch.allclose(whole[key], in_parts[key], rtol=1e-9, atol=1e-12) for key in whole)


def test_mean_loss_weighs_tokens_not_batches() -> None:
    model, objective = decoder(torch.float32), NextToken()
    model.train()
    batches = [make_batch(rows=4), make_batch(rows=1, seed=5)]
    mean, weight = mean_loss(model, objective, batches, CPU, torch.float32)
    with torch.no_grad():
        total = sum(float(objective.loss(model, batch)) for batch in batches)
    assert weight == sum(batch.weight for batch in batches)
    assert mean == pytest.approx(total / weight, rel=1e-6)
    assert model.training, "the mode is put back"
