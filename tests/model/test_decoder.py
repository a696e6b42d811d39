"""The decoder against a plain re-statement of its formulas, its masks, and its knobs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.masks import causal_mask
from leveret.model.weights import to_disk


def shape(**knobs: object) -> ModelConfig:
    base = {
        "vocab_size": 29,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
    }
    return ModelConfig.model_validate(base | knobs)


def decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """All weights drawn, norms and biases too, large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + (parameter.dim() == 1))
    return model


def some_ids(config: ModelConfig, rows: int = 2, tokens: int = 12, seed: int = 1) -> Tensor:
    return torch.randint(config.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


class Plain:
    """The same model written down again from the papers, one token and one head at a time, on the weights on disk."""

    def __init__(self, model: Decoder) -> None:
        self.config = model.config
        self.disk = to_disk(model.state_dict(), model.config)

    def weight(self, name: str) -> Tensor:
        return self.disk[f"model.{name}"].double()

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = self.weight(f"{name}.weight") @ x
        return y + self.weight(f"{name}.bias") if f"model.{name}.bias" in self.disk else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.config.norm == "rms":
            return x / (x.square().mean() + self.config.norm_eps).sqrt() * self.weight(f"{name}.weight")
        centred = x - x.mean()
        scaled = centred / (centred.square().mean() + self.config.norm_eps).sqrt()
        return scaled * self.weight(f"{name}.weight") + self.weight(f"{name}.bias")

    def turn(self, head: Tensor, position: int) -> Tensor:
        """Rotation as a product of complex numbers; weights on disk are in the half layout."""
        if self.config.position != "rope":
            return head
        half = len(head) // 2
        turning = range(round(half * self.config.rope_fraction))
        angles = torch.zeros(half).double()
        angles[: len(turning)] = torch.tensor([position / self.config.rope_theta ** (i / half) for i in turning])
        turned = torch.complex(head[:half], head[half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag])

    def values(self, layer: int, ids: list[int], x: list[Tensor]) -> list[list[Tensor]]:
        """Of each token, each head's value, with what the token itself adds to it."""
        name, width = f"layers.{layer}.self_attn", self.config.head_width
        values = [list(self.linear(f"{name}.v_proj", each).split(width)) for each in x]
        if f"model.value_embeds.{layer}.weight" in self.disk:
            for token, mine, each in zip(ids, values, x, strict=True):
                gates = self.weight(f"{name}.value_gate.weight") @ each[:32]
                own = self.weight(f"value_embeds.{layer}.weight")[token].split(width)
                mine[:] = [v + 2 / (1 + math.exp(-gate)) * e for v, gate, e in zip(mine, gates, own, strict=True)]
        return values

    def attention(self, layer: int, ids: list[int], xs: list[Tensor]) -> list[Tensor]:
        config, width, name = self.config, self.config.head_width, f"layers.{layer}.self_attn"
        group = config.num_attention_heads // config.kv_heads
        q, k = ([self.linear(f"{name}.{part}_proj", x).split(width) for x in xs] for part in "qk")
        v = self.values(layer, ids, xs)
        if layer == 0:
            self.first = v
        elif config.value_residual:
            mine, firsts = self.weight(f"{name}.value_mix")
            v = [
                [mine * a + firsts * b for a, b in zip(*pair, strict=True)] for pair in zip(v, self.first, strict=True)
            ]
        outs = []
        for t in range(len(xs)):
            heads = []
            for head in range(config.num_attention_heads):
                query = self.turn(q[t][head], t)
                letter = config.window_pattern[::-1][
                    (config.num_hidden_layers - 1 - layer) % len(config.window_pattern)
                ]
                window = config.sliding_window if letter == "S" else None
                earlier = range(max(0, t + 1 - (window or t + 1)), t + 1)
                scores = [query @ self.turn(k[s][head // group], s) / math.sqrt(width) for s in earlier]
                shares = torch.stack(scores).softmax(0)
                heads.append(sum(share * v[s][head // group] for share, s in zip(shares, earlier, strict=True)))
            outs.append(self.linear(f"{name}.o_proj", torch.cat(heads)))
        return outs

    def mlp(self, name: str, x: Tensor) -> Tensor:
        up = self.linear(f"{name}.up_proj", x)
        if self.config.mlp == "swiglu":
            gate = self.linear(f"{name}.gate_proj", x)
            inner = gate / (1 + (-gate).exp()) * up
        elif self.config.mlp == "relu2":
            inner = up.clamp(min=0) ** 2
        else:
            inner = up / 2 * (1 + (math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)).tanh())
        return self.linear(f"{name}.down_proj", inner)

    def logits(self, ids: list[int]) -> Tensor:
        xs = [self.weight("embed_tokens.weight")[token] for token in ids]
        if self.config.position == "learned":
            xs = [x + self.weight("embed_positions.weight")[t] for t, x in enumerate(xs)]
        start = xs
        for number in range(self.config.num_hidden_layers):
            layer = f"layers.{number}"
            if self.config.residual_scales:
                a, b = self.weight(f"{layer}.scales")
                xs = [a * x + b * s for x, s in zip(xs, start, strict=True)]
            n1 = [self.norm(f"{layer}.input_layernorm", x) for x in xs]
            attended = self.attention(number, ids, n1)
            if self.config.residual == "parallel-shared-norm":  # x + attn(n(x)) + mlp(n(x))
                xs = [x + a + self.mlp(f"{layer}.mlp", n) for x, a, n in zip(xs, attended, n1, strict=True)]
                continue
            second = f"{layer}.post_attention_layernorm"
            after = [x + a for x, a in zip(xs, attended, strict=True)]
            if self.config.residual == "parallel":  # x + attn(n1(x)) + mlp(n2(x))
                n2 = [self.norm(second, x) for x in xs]
            else:
                n2 = [self.norm(second, x) for x in after]
            xs = [x + self.mlp(f"{layer}.mlp", n) for x, n in zip(after, n2, strict=True)]
        head = self.disk.get("lm_head.weight", self.disk["model.embed_tokens.weight"]).double()
        logits = torch.stack([head @ self.norm("norm", x) for x in xs])
        cap = self.config.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()


@pytest.mark.parametrize("residual", ["sequential", "parallel", "parallel-shared-norm"])
@pytest.mark.parametrize(
    "knobs",
    [
        {"rope_layout": "interleaved"},  # TinyLLM with parallel
        {"position": "learned", "num_key_value_heads": 1, "head_dim": 6},  # smallm with parallel-shared-norm
        {"position": "none", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
        {"mlp": "relu2", "num_key_value_heads": 2, "sliding_window": 3, "tie_word_embeddings": False},
        {"logit_softcap": 2.0, "rope_theta": 100.0, "norm_eps": 0.1},
        {"rope_fraction": 0.5, "rope_layout": "interleaved", "sliding_window": 2, "window_pattern": "SL"},
        {"value_embeddings": True, "num_hidden_layers": 3, "num_key_value_heads": 2},
        {"value_residual": True, "residual_scales": True, "num_hidden_layers": 3, "value_embeddings": True},
        {"sliding_window": 3, "window_pattern": "SSL", "num_hidden_layers": 5, "position": "learned"},
    ],
    ids=lambda knobs: ",".join(knobs),
)
def test_against_a_plain_restatement(residual: str, knobs: dict[str, object]) -> None:
    model = decoder(shape(residual=residual, **knobs))
    ids = some_ids(model.config, rows=1, tokens=8)
    expected = Plain(model).logits(ids[0].tolist())
    with torch.no_grad():
        found = model(ids)[0].double()
    assert expected.std() > 0.1
    assert (expected - found).abs().max() < 1e-4


def test_residual_forms_differ() -> None:
    shared = decoder(shape(residual="parallel-shared-norm"))
    ids = some_ids(shared.config)
    parallel, sequential = (Decoder(shape(residual=form)).eval() for form in ("parallel", "sequential"))
    missing = parallel.load_state_dict(shared.state_dict(), strict=False).missing_keys
    assert missing == ["layers.0.post_attention_layernorm.weight", "layers.1.post_attention_layernorm.weight"]
    sequential.load_state_dict(parallel.state_dict())
    with torch.no_grad():
        outs = [model(ids) for model in (shared, parallel, sequential)]
        # With the second norm a copy of the first, two norms are one.
        for layer in parallel.layers:
            layer.post_attention_layernorm.load_state_dict(layer.input_layernorm.state_dict())
        assert torch.allclose(parallel(ids), outs[0], atol=1e-6)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (outs[a] - outs[b]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("base", "knob"),
    [
        ({}, {"qk_norm": True}),
        ({"mlp": "gelu"}, {"mlp": "relu2"}),
        ({}, {"logit_softcap": 0.5}),
        ({}, {"sliding_window": 2}),
        ({}, {"rope_layout": "interleaved"}),
        ({}, {"rope_theta": 10.0}),
        ({}, {"position": "none"}),
        ({}, {"norm_eps": 0.5}),
    ],
    ids=lambda knob: ",".join(map(str, knob.items())),
)
def test_a_knob_matters(base: dict[str, Any], knob: dict[str, Any]) -> None:
    """The same weights with the knob turned give other logits."""
    without, turned = decoder(shape(**base)), Decoder(shape(**(base | knob))).eval()
    turned.load_state_dict(without.state_dict(), strict=False)
    ids = some_ids(without.config)
    with torch.no_grad():
        before, after = without(ids), turned(ids)
    assert after.isfinite().all()
    assert (before - after).abs().max() > 0.01
    if cap := turned.config.logit_softcap:
        assert torch.allclose(after, cap * torch.tanh(before / cap), atol=1e-6)
        assert after.abs().max() < cap


def test_an_untied_head_is_its_own() -> None:
    tied, untied = decoder(shape()), decoder(shape(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert untied.lm_head.weight.shape == untied.embed_tokens.weight.shape
    ids = some_ids(untied.config)
    with torch.no_grad():
        hidden = untied.hidden(ids)
        untied.lm_head.weight.mul_(2)
        assert torch.equal(untied.hidden(ids), hidden)
        assert torch.allclose(untied(ids), hidden @ untied.lm_head.weight.t(), atol=1e-5)


def test_initial_weights() -> None:
    config = shape(hidden_size=64, vocab_size=500, num_hidden_layers=8, mlp_bias=True, attention_bias=True)
    state = Decoder(config).state_dict()
    assert state["embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["layers.3.self_attn.qkv_proj.weight"].std() == pytest.approx(0.02, rel=0.05)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert state[f"layers.3.{name}.weight"].std() == pytest.approx(0.02 / 4, rel=0.1)  # 1 / sqrt(2 * 8 layers)
        assert not state[f"layers.3.{name}.bias"].any()
    assert torch.equal(state["norm.weight"], torch.ones(64))
    still = Decoder(config.model_copy(update={"residual_init": "zero"}))
    ids = some_ids(config)
    assert torch.equal(still.hidden(ids), still.norm(still.embed_tokens(ids))), "every block begins as the identity"
    level = Decoder(config.model_copy(update={"residual_init": "plain"})).state_dict()
    assert level["layers.3.mlp.down_proj.weight"].std() == pytest.approx(0.02, rel=0.1)


def test_no_token_sees_the_future() -> None:
    model = decoder(shape())
    ids = some_ids(model.config)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % model.config.vocabulary
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert (before[:, 7] - after[:, 7]).abs().max() > 0.01


@pytest.mark.parametrize("window", [None, 1, 3])
def test_causal_mask_token_by_token(window: int | None) -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 2, 3]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 2, 0, 0]])
    apart, together = causal_mask(positions, window, documents), causal_mask(positions, window)
    assert (apart.shape, together.shape) == ((2, 1, 7, 7), (1, 1, 7, 7))
    for token in range(7):
        for key in range(7):
            seen = key <= token and (window is None or token - key < window)
            assert bool(together[0, 0, token, key]) == seen
            for row in range(2):
                same = documents[row, token] == documents[row, key]
                assert bool(apart[row, 0, token, key]) == (seen and bool(same))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_documents_of_a_row_do_not_see_each_other(position: str, window: int | None) -> None:
    model = decoder(shape(position=position, sliding_window=window))
    ids = some_ids(model.config, rows=1)
    spans = [(0, 4), (4, 9), (9, 12)]
    documents = torch.tensor([[number for number, (a, b) in enumerate(spans) for _ in range(a, b)]])
    positions = torch.tensor([[place for a, b in spans for place in range(b - a)]])
    mask = causal_mask(positions, window, documents)
    with torch.no_grad():
        packed = model(ids, positions, mask)
        for start, end in spans:
            changed = (ids + 1) % model.config.vocabulary
            changed[:, start:end] = ids[:, start:end]
            assert torch.allclose(model(changed, positions, mask)[:, start:end], packed[:, start:end], atol=1e-6)
            # A packed document is as if it were alone.
            assert torch.allclose(model(ids[:, start:end]), packed[:, start:end], atol=1e-5)
            if start:  # and without the mask it would not be
                other = model(changed)[:, start:end] - model(ids)[:, start:end]
                assert other.abs().max() > 0.01


def test_rope_depends_on_distance_only() -> None:
    model = decoder(shape(max_position_embeddings=512))
    ids = some_ids(model.config)
    with torch.no_grad():
        shifted = model(ids, torch.arange(12)[None] + 500)
        assert torch.allclose(model(ids), shifted, atol=1e-3)
        stretched = model(ids, torch.arange(12)[None] * 3)
        assert (stretched - shifted).abs().max() > 0.01


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        ({"hidden_size": 18}, "does not divide into num_attention_heads"),
        ({"num_key_value_heads": 3}, "does not divide num_attention_heads"),
        ({"head_dim": 5}, "even head width"),
        ({"hidden_sizes": 16}, "hidden_sizes"),
    ],
)
def test_impossible_shapes_are_refused(knobs: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        shape(**knobs)
