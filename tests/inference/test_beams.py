"""Beam search against transformers' own, and against all answers that there are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import decoder, plainly, prompts
from transformers import AutoModelForCausalLM, PreTrainedModel

from leveret.errors import UserError
from leveret.export.shapes import facts_of
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.inference.request import Unfit
from leveret.model.decoder import Decoder
from leveret.model.weights import to_disk
from leveret.rundir import write_json
from leveret.tokenizer import Tokenizer
from leveret.training.tensorfile import write_tensors


def theirs_of(model: Decoder, folder: Path) -> PreTrainedModel:
    """The same weights in transformers; id 0 ends."""
    weights = to_disk(dict(model.state_dict()), model.config)
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    write_json(folder / "config.json", facts_of(model.config) | {"eos_token_id": 0, "pad_token_id": 0})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ending(scale: float, **knobs: Any) -> Decoder:
    """A decoder that is less sure of its words, and that says its end token now and then."""
    model = decoder(48, **knobs)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
        model.lm_head.weight[0].mul_(scale)
    return model


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("beams", [2, 4])
def test_the_tokens_are_those_of_transformers(tokenizer: Tokenizer, name: str, beams: int, tmp_path: Path) -> None:
    """Prompts of many lengths at once, each as transformers answers it alone."""
    model = ending(4.0, **SHAPES[name])
    theirs, engine = theirs_of(model, tmp_path), Engine(model, tokenizer)
    asked = prompts(*range(1, 15))
    ends = set()
    for penalty in (0.0, 0.6, 1.0, 2.0):
        config = SamplingConfig(max_new_tokens=12, beams=beams, length_penalty=penalty)
        for prompt, answer in zip(asked, engine.generate(asked, config), strict=True):
            ids = theirs.generate(
                torch.tensor([prompt]), num_beams=beams, length_penalty=penalty, max_new_tokens=12, do_sample=False
            )[0, len(prompt) :].tolist()
            expected = ids[: ids.index(0)] if 0 in ids else ids
            assert (answer.tokens, answer.finish) == (expected, "stop" if 0 in ids else "length")
            ends.add(answer.finish)
    assert ends == {"stop", "length"}


@torch.no_grad()
def test_beams_enough_find_the_best_of_all(tokenizer: Tokenizer) -> None:
    """Every answer of two tokens is tried."""
    model = ending(0.0)
    (prompt,) = prompts(5)
    config = SamplingConfig(max_new_tokens=2, beams=257)
    (answer,) = Engine(model, tokenizer).generate([prompt], config, ignore_end=True)
    first = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    second = model(torch.tensor([[*prompt, token] for token in range(257)]))[:, -1].log_softmax(-1)
    best = divmod(int((first[:, None] + second).argmax()), 257)
    assert tuple(answer.tokens) == best


def test_the_context_ends_an_answer(tokenizer: Tokenizer) -> None:
    engine = Engine(ending(0.0), tokenizer)
    config = SamplingConfig(max_new_tokens=100, beams=3)
    assert [len(answer.tokens) for answer in engine.generate(prompts(40, 48), config)] == [9, 1]
    with pytest.raises(Unfit, match=r"49 tokens.*room for 48"):
        engine.generate(prompts(49), config)
    with pytest.raises(UserError, match="empty"):
        engine.generate([[]], config)


def test_one_beam_is_greedy_and_a_stream_ends_with_the_best(tokenizer: Tokenizer) -> None:
    model = ending(1.0)
    engine, asked = Engine(model, tokenizer), prompts(6)
    one = engine.generate(asked, SamplingConfig(max_new_tokens=9, beams=1), ignore_end=True)
    assert one[0].tokens == plainly(model, asked[0], 9)
    config = SamplingConfig(max_new_tokens=9, beams=3)
    assert list(engine.stream(asked[0], config)) == [engine.generate(asked, config)[0].text]


def test_a_stop_string_cuts_the_best_answer(tokenizer: Tokenizer) -> None:
    engine, asked = Engine(ending(0.0), tokenizer), prompts(6)
    config = SamplingConfig(max_new_tokens=20, beams=3)
    whole = engine.generate(asked, config)[0].text
    (cut,) = engine.generate(asked, config.model_copy(update={"stop": [whole[5:7]]}))
    assert cut.text == whole[: whole.find(whole[5:7])]
    assert cut.finish == "stop"


@pytest.mark.parametrize(
    "more",
    [{"temperature": 1.0}, {"repetition_penalty": 1.1}, {"choices": ["a"]}, {"logprobs": 2}, {"draft_tokens": 2}],
)
def test_what_goes_not_with_beams_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="beams"):
        SamplingConfig(beams=2, **more)
