"""The C file against float64 and against the decoder that torch runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leveret.hardware import native
from leveret.inference import kernels
from leveret.inference.cache import KeyValueCache
from leveret.inference.kernels import matrix, product
from leveret.inference.quantize import Quantisation, pack_int4, pack_int8, quantise, unpack
from leveret.inference.runner import Runner
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder

CPU = torch.device("cpu")
FORMS = ["float32", "bfloat16", "int8", "int4"]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "grouped, half turned": {"num_key_value_heads": 1, "rope_layout": "interleaved", "rope_fraction": 0.5},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
    "windows": {"sliding_window": 5, "window_pattern": "SL", "qk_norm": True, "residual": "parallel"},
    "palm": {
        "residual": "parallel-shared-norm",
        "mlp": "relu2",
        "logit_softcap": 5.0,
        "tie_word_embeddings": False,
        "position": "none",
    },
    "odd widths": {"head_dim": 10, "hidden_size": 47, "intermediate_size": 75},
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """As many for the kernels, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
    yield request.param
    torch.set_num_threads(before)


def packed(form: str, weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the kernel is given of a matrix, and the matrix that it then is, in float64."""
    if form in ("int8", "int4"):
        whole, scale = pack_int8(weight) if form == "int8" else pack_int4(weight)
        return whole, scale, unpack(whole, scale, weight.shape[1]).double()
    kept = weight.to(getattr(torch, form))
    return kept, None, kept.double()


def multiplied(form: str, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A product of the kernel's, and the same in float64."""
    library = kernels.library()
    assert library is not None
    whole, scale, plain = packed(form, weight)
    return product(library, matrix(whole, scale, None, weight.shape[1]), x), x.double() @ plain.T


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 17), (4, 32), (66, 100), (9, 257)])
def test_products_are_those_of_float64(form: str, rows: int, columns: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    for count in range(1, 10):
        x = torch.randn(count, columns, generator=generator)
        found, exact = multiplied(form, weight, x)
        assert (found - exact).abs().max() <= 2e-6 * x.norm(dim=1).max() * weight.norm(dim=1).max()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_in_its_row(form: str) -> None:
    weight, x = torch.randn(6, 40), torch.randn(3, 40)
    clean, _ = multiplied(form, weight, x)
    x[1, 7] = torch.nan
    spoilt, _ = multiplied(form, weight, x)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    x[1, 7] = torch.inf
    spoilt, exact = multiplied(form, weight, x)
    torch.testing.assert_close(spoilt[1].double(), exact[1], equal_nan=True)


def decoder(**knobs: Any) -> Decoder:
    """A small decoder whose biases and norms are not those of the beginning."""
    base = {
        "vocab_size": 259,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 76,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    model = Decoder(ModelConfig.model_validate(base | knobs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def runners(model: Decoder, dtype: torch.dtype = torch.float32) -> tuple[Runner, Runner]:
    """The decoder run by the kernels, and by torch."""
    ours, plain = Runner(model, dtype), Runner(model, dtype)
    assert ours.fused is not None
    plain.fused = None
    return ours, plain


def asked(runner: Runner) -> Tensor:
    """Logits of two prompts of different lengths, of steps after them, and of drafts, beginning at slot 1."""
    cache = KeyValueCache(runner.model.config, 3, 40, CPU, runner.dtype).part(1, [0, 0])
    generator = torch.Generator().manual_seed(1)
    logits = [runner.forward(torch.randint(0, 259, (2, 7), generator=generator), [7, 4], cache)]
    for _ in range(9):
        logits.append(runner.forward(torch.randint(0, 259, (2, 1), generator=generator), [1, 1], cache))
    drafts = torch.randint(0, 259, (2, 3), generator=generator)
    logits.append(runner.forward(drafts, [3, 3], cache, every=True).flatten(0, 1))
    assert cache.lengths == [19, 16]
    return torch.cat(logits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [None, "int8", "int4"])
def test_the_decoder_is_torchs(shape: str, bits: Quantisation | None) -> None:
    model = decoder(**SHAPES[shape])
    if bits:
        quantise(model, bits)
    ours, plain = map(asked, runners(model))
    assert plain.std() > 0.3
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_less_is_lost_than_torch_loses(shape: str) -> None:
    model = decoder(**SHAPES[shape]).bfloat16()
    exact = decoder(**SHAPES[shape])
    exact.load_state_dict(model.state_dict())
    wide, narrow = asked(runners(exact)[1]), asked(runners(model, torch.bfloat16)[0])
    by_torch = asked(runners(model, torch.bfloat16)[1])
    assert (narrow - wide).norm() < 0.7 * (by_torch - wide).norm()


def test_a_row_is_bit_for_bit_itself_in_any_company(threads: int) -> None:
    model = decoder()
    runner, _ = runners(model)
    prompts = [torch.randint(0, 259, (length,)) for length in (9, 3, 5, 1, 4)]
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat((p, torch.zeros(longest - len(p), dtype=torch.long))) for p in prompts])[:, :6]
    real = [min(len(p), 6) for p in prompts]
    together = runner.forward(ids, real, KeyValueCache(model.config, 5, 40, CPU, torch.float32).part(0, [0] * 5))
    for i, count in enumerate(real):
        cache = KeyValueCache(model.config, 1, 40, CPU, torch.float32).part(0, [0])
        assert torch.equal(runner.forward(ids[i : i + 1, :count], [count], cache)[0], together[i])


@pytest.mark.parametrize("knob", ["value_residual", "value_embeddings", "residual_scales"])
def test_what_the_kernels_do_not_know_is_left_to_torch(knob: str) -> None:
    assert Runner(decoder(**{knob: True}), torch.float32).fused is None


def test_layers_of_other_kinds_are_left_to_torch() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = decoder()
    model.layers[1].mlp.down_proj = Doubled(76, 48, bias=False)  # type: ignore[union-attr]
    assert Runner(model, torch.float32).fused is None


def test_weights_may_change_in_place() -> None:
    model = decoder()
    ours, plain = runners(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(asked(ours), asked(plain), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_one_line_says_so(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    native.compiled.cache_clear()
    try:
        runner = Runner(decoder(), torch.float32)
        assert runner.fused is None
        (line,) = capsys.readouterr().err.splitlines()
        assert "more slowly" in line
        assert asked(runner).isfinite().all()
    finally:
        native.compiled.cache_clear()


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path))
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }\n")
    library = native.compiled(source)
    assert library is not None
    assert library.one() == 1
    native.compiled.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.compiled(source) is not None
    assert len(list((tmp_path / "native").iterdir())) == 1
