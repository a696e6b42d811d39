"""Adapters: they change nothing at first, merge and come out again exactly, and peft reads what we write."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from leveret.errors import UserError
from leveret.model.config import LoraConfig, ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import (
    add_lora,
    count_lora,
    from_peft,
    lora_of_peft,
    merge,
    merged,
    peft_config,
    split_state,
    to_peft,
)
from leveret.model.weights import to_disk
from leveret.training.cross_entropy import linear_cross_entropy, linear_token_losses

GPT2 = {"position": "learned", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True}
LLAMA = {"num_key_value_heads": 2, "norm_eps": 1e-6}
SHAPES: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "llama": (LLAMA, None),
    "interleaved": (LLAMA | {"rope_layout": "interleaved"}, None),
    "first and last of the fused": (LLAMA | {"rope_layout": "interleaved"}, ["q_proj", "v_proj", "up_proj"]),
    "middle of the fused": (LLAMA, ["k_proj", "o_proj", "gate_proj"]),
    "untied": (LLAMA | {"tie_word_embeddings": False}, ["down_proj"]),
    "gpt2": (GPT2, None),
    "gpt2 in part": (GPT2, ["q_proj", "k_proj", "v_proj", "down_proj"]),
}
IDS = torch.arange(48).view(2, 24) % 61


def adapted_decoder(name: str) -> tuple[Decoder, LoraConfig]:
    """A decoder whose adapters have learnt something."""
    knobs, targets = SHAPES[name]
    base = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base |= {"intermediate_size": 48, "max_position_embeddings": 24, "initializer_range": 0.2}
    lora = LoraConfig.model_validate({"rank": 3, "alpha": 5.0, "targets": targets})
    torch.manual_seed(2)
    model = Decoder(ModelConfig.model_validate(base | knobs)).eval()
    add_lora(model, lora, seed=1)
    return model, lora


def learnt(model: Decoder) -> Decoder:
    generator = torch.Generator().manual_seed(8)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(IDS)


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    if config.position == "learned":
        keys = {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 61}
        return GPT2LMHeadModel(GPT2Config(layer_norm_epsilon=config.norm_eps, **keys))
    keys = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    keys |= {"vocab_size": 61, "intermediate_size": 48, "max_position_embeddings": 24}
    tied = config.tie_word_embeddings
    return LlamaForCausalLM(LlamaConfig(rms_norm_eps=config.norm_eps, tie_word_embeddings=tied, **keys))


@pytest.mark.parametrize("name", SHAPES)
def test_new_adapters_change_nothing_and_are_all_that_is_learnt(name: str) -> None:
    model, lora = adapted_decoder(name)
    plain = Decoder(model.config)
    plain.load_state_dict(split_state(model.state_dict())[0])
    assert torch.equal(logits(model), logits(plain.eval()))
    numbers = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora_A", "lora_B")) for name in numbers)
    assert sum(numbers.values()) == count_lora(model.config, lora)


@pytest.mark.parametrize("name", SHAPES)
def test_merged_is_the_same_function_and_comes_out_without_losing_a_bit(name: str) -> None:
    model, lora = adapted_decoder(name)
    flat = logits(model)
    beside = logits(learnt(model))
    assert (beside - flat).abs().max() > 0.1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with merged(model):
        inside, of_weights = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    assert (inside - beside).abs().max() <= 1e-5
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model), beside)
    plain = Decoder(model.config).eval()
    state = merge(*split_state(before), model.config, lora)
    plain.load_state_dict(state)
    assert torch.equal(logits(plain), inside)
    assert all(torch.equal(of_weights[name], tensor) for name, tensor in state.items())


def test_an_error_inside_takes_the_adapters_out_too() -> None:
    model = learnt(adapted_decoder("llama")[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), merged(model):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", SHAPES)
def test_peft_puts_our_adapters_onto_transformers_model(name: str, tmp_path: Path) -> None:
    model, lora = adapted_decoder(name)
    learnt(model)
    base, adapters = split_state(model.state_dict())
    theirs = transformers_model(model.config)
    missing, unexpected = theirs.load_state_dict(to_disk(base, model.config), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert unexpected == []
    theirs.tie_weights()
    save_file(to_peft(adapters, model.config, lora), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(model.config, lora)))
    with_ours = peft.PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    with torch.no_grad():
        found = with_ours(input_ids=IDS).logits
    assert (found - logits(model)).abs().max() <= 1e-4
    with torch.no_grad(), with_ours.disable_adapter():
        assert (with_ours(input_ids=IDS).logits - found).abs().max() > 0.1, "the adapters did something"


@pytest.mark.parametrize("name", SHAPES)
def test_to_pefts_format_and_back_is_exact(name: str) -> None:
    model, lora = adapted_decoder(name)
    _, adapters = split_state(learnt(model).state_dict())
    again = lora_of_peft(json.loads(json.dumps(peft_config(model.config, lora))), model.config)
    assert (again.rank, again.alpha) == (lora.rank, lora.alpha)
    back = from_peft(to_peft(adapters, model.config, lora), model.config, again)
    assert back.keys() == adapters.keys()
    assert all(torch.equal(back[name], adapters[name]) for name in adapters)


@pytest.mark.parametrize(
    ("knobs", "targets", "missing"),
    [({"mlp": "relu2"}, ["gate_proj", "up_proj"], "gate_proj"), (GPT2, ["q_proj", "up_proj"], "q_proj")],
)
def test_what_cannot_be_adapted_is_named(knobs: dict[str, Any], targets: list[str], missing: str) -> None:
    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModelConfig.model_validate(shape | {"intermediate_size": 8, "max_position_embeddings": 4} | knobs)
    with pytest.raises(UserError, match=rf"lora\.targets: {missing} cannot be adapted"):
        add_lora(Decoder(config), LoraConfig.model_validate({"targets": targets}), 0)


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_token_losses])
def test_a_frozen_head_has_no_gradient_made_and_changes_none_of_the_others(function: Any) -> None:
    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
    targets, gradients, largest = torch.arange(7), [], []
    for frozen in (False, True):
        leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        seen = SeenSizes()
        with seen:
            function(leaf, head, targets, -100).sum().backward()
        assert (head.grad is None) == frozen
        gradients.append(leaf.grad)
        largest.append(seen.heads)
    assert torch.equal(gradients[0], gradients[1])
    assert largest[0] > 0
    assert largest[1] == 0, "nothing of the head's size was made"


class SeenSizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts new tensors of the head's shape."""

    heads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = isinstance(out, Tensor) and out.shape == (11, 5) and "detach" not in str(func)
        self.heads += made
        return out
