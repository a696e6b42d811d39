"""Attention in bfloat16 on a CPU, which is made of plain products, against torch's kernel in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.model.layers import PLAIN_KEYS, attend

KERNEL = F.scaled_dot_product_attention


def draw(heads: int, kv_heads: int, tokens: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads)
    shapes = ((2, heads, tokens, 16), (2, kv_heads, tokens, 16), (2, kv_heads, tokens, 16))
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return q, k, v


def two_documents(tokens: int = 24) -> Tensor:
    """Of 5 tokens and the rest in the first row, of 9 in the second."""
    order = torch.arange(tokens)
    number = torch.stack([order >= 5, order >= 9])
    return ((order[:, None] >= order) & (number[:, :, None] == number[:, None, :]))[:, None]


def results(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of a weighted sum of it."""
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape).to(out.dtype)
    return [out.double(), *(gradient.double() for gradient in torch.autograd.grad((out * weights).sum(), leaves))]


@pytest.mark.parametrize("mask", [None, two_documents()], ids=["causal", "documents"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_plain_attention_is_attention(
    heads: int, kv_heads: int, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(heads, kv_heads)
    exact = [x.double().requires_grad_() for x in drawn]
    wanted = results(KERNEL(*exact, attn_mask=mask, is_causal=mask is None, enable_gqa=True), exact)
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    rough = [x.requires_grad_() for x in drawn]
    for found, expected in zip(results(attend(*rough, mask), rough), wanted, strict=True):
        assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("case", ["float32", "one token", "too many keys"])
def test_other_shapes_and_dtypes_take_the_kernel(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or KERNEL(*a, **k))
    q, k, v = draw(2, 2, PLAIN_KEYS + 1 if case == "too many keys" else 24)
    if case == "float32":
        q, k, v = q.float(), k.float(), v.float()
    attend(q[:, :, -1:] if case == "one token" else q, k, v, None)
    assert calls == [1]
