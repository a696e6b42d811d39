"""The engine against plain loops that read everything again for each token."""

from typing import Any

import pytest
import torch
from tiny_engine import CONTEXT, SHAPES, decoder, plainly, prompts
from torch import nn

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Completion, Engine
from leveret.model.decoder import Decoder
from leveret.tokenizer import Tokenizer


class Script(nn.Module):
    """In place of a decoder's head: it says these tokens one after the other, whatever the prompt."""

    def __init__(self, model: Decoder, tokens: list[int]) -> None:
        super().__init__()
        self.tokens, self.next = tokens, 0
        self.vocab = model.config.vocabulary
        model.lm_head = self  # type: ignore[assignment]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self.vocab)
        logits[:, self.tokens[self.next]] = 1.0
        self.next += 1
        return logits


def saying(tokenizer: Tokenizer, text: str, end: bool = True) -> Engine:
    """An engine that answers `text`, byte by byte."""
    model = decoder()
    Script(model, tokenizer.encode(text) + ([0] if end else []))
    return Engine(model, tokenizer)


def greedy(tokens: int, **more: Any) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=tokens, **more)


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_is_the_plain_loop(tokenizer: Tokenizer, name: str) -> None:
    model = decoder(**SHAPES[name])
    (prompt,) = prompts(7)
    (answer,) = Engine(model, tokenizer).generate([prompt], greedy(30), ignore_end=True)
    assert answer.tokens == plainly(model, prompt, 30)
    assert len(set(answer.tokens)) > 5  # an answer that repeats itself would prove little
    assert answer.text == tokenizer.decode(answer.tokens)
    assert answer.finish == "length"


@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_is_each_alone(tokenizer: Tokenizer, name: str) -> None:
    model = decoder(**SHAPES[name])
    engine, asked = Engine(model, tokenizer), prompts(3, 17, 1, 8)
    together = engine.generate(asked, greedy(20), ignore_end=True)
    assert together == [engine.generate([prompt], greedy(20), ignore_end=True)[0] for prompt in asked]


def test_more_prompts_than_fit_wait_for_a_place(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = Engine(decoder(), tokenizer), prompts(3, 17, 1, 8, 5, 30)
    together = [engine.generate(asked, config) for config in (greedy(20), drawn(4))]
    monkeypatch.setattr("leveret.inference.engine.AT_ONCE", 2)
    assert [engine.generate(asked, config) for config in (greedy(20), drawn(4))] == together


def test_a_batch_whose_rows_end_at_different_times_is_each_alone(tokenizer: Tokenizer) -> None:
    """Here the end token is whatever a row says fifth, so that rows leave the batch one by one."""
    model = decoder()
    asked = prompts(3, 9, 5, 2)
    with torch.no_grad():
        model.lm_head.weight[0] = 0.95 * model.lm_head.weight[plainly(model, asked[1], 5)[4]]
        model.lm_head.weight[plainly(model, asked[1], 5)[4]] *= -1
    engine = Engine(model, tokenizer)
    together = engine.generate(asked, greedy(40))
    assert len({len(answer.tokens) for answer in together}) > 1
    assert together == [engine.generate([prompt], greedy(40))[0] for prompt in asked]
    for prompt, answer in zip(asked, together, strict=True):
        plain = plainly(model, prompt, 40)
        assert answer.tokens == (plain[: plain.index(0)] if 0 in plain else plain)
        assert answer.finish == ("stop" if 0 in plain else "length")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_past_the_context_the_window_slides(tokenizer: Tokenizer, name: str, length: int) -> None:
    model = decoder(CONTEXT, **SHAPES[name])
    (prompt,) = prompts(length)
    (answer,) = Engine(model, tokenizer).generate([prompt], greedy(3 * CONTEXT), ignore_end=True)
    assert answer.tokens == plainly(model, prompt, 3 * CONTEXT)


@pytest.mark.parametrize("name", SHAPES)
def test_windows_of_a_batch_slide_each_in_its_time(tokenizer: Tokenizer, name: str) -> None:
    model = decoder(CONTEXT, **SHAPES[name])
    asked = prompts(2, 13, CONTEXT, 2 * CONTEXT, 7)
    together = Engine(model, tokenizer).generate(asked, greedy(2 * CONTEXT), ignore_end=True)
    assert tokens_of(together) == [plainly(model, prompt, 2 * CONTEXT) for prompt in asked]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_smallest_contexts(tokenizer: Tokenizer, context: int) -> None:
    model = decoder(context)
    (prompt,) = prompts(2)
    (answer,) = Engine(model, tokenizer).generate([prompt], greedy(6), ignore_end=True)
    assert answer.tokens == plainly(model, prompt, 6)


@pytest.mark.parametrize("stop", [[], ["e"], ["\n\n"], ["never"]])
def test_what_is_streamed_is_what_is_generated(tokenizer: Tokenizer, stop: list[str]) -> None:
    config = SamplingConfig(max_new_tokens=60, temperature=1.0, seed=3, stop=stop)
    engine = Engine(decoder(), tokenizer)
    (prompt,) = prompts(4)
    pieces = list(engine.stream(prompt, config))
    assert "".join(pieces) == engine.generate([prompt], config)[0].text
    assert all(pieces)


def test_no_half_character_is_streamed(tokenizer: Tokenizer) -> None:
    text = "né 野兔 👍🏽."
    assert list(saying(tokenizer, text).stream([5], greedy(60))) == list(text)


def test_a_character_cut_short_is_marked_once(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("é")[:1]
    model = decoder()
    Script(model, [*half, 0])
    assert Engine(model, tokenizer).generate([[5]], greedy(9))[0].text == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("ls -l</end>rm", ["</end>"], "ls -l"),
        ("ls </en </end>", ["</end>"], "ls </en "),  # a false start is shown in the end
        ("ls <</end>", ["</end>"], "ls <"),
        ("aab", ["ab"], "a"),
        ("one two", ["two", "ne"], "o"),  # the earliest one counts
        ("one two", ["one two three"], "one two"),  # only begun
        ("stop", ["stop"], ""),
        ("Frage: é¿", ["é¿"], "Frage: "),
    ],
)
def test_a_stop_string_is_never_shown(tokenizer: Tokenizer, text: str, stop: list[str], shown: str) -> None:
    """Each of its characters is a token, so that it always spans several."""
    (answer,) = saying(tokenizer, text).generate([[5]], greedy(60, stop=stop))
    assert (answer.text, answer.finish) == (shown, "stop")
    said = ""
    for piece in saying(tokenizer, text).stream([5], greedy(60, stop=stop)):
        said += piece
        assert shown.startswith(said)
    assert said == shown


def test_it_stops_at_the_end_token(tokenizer: Tokenizer) -> None:
    (answer,) = saying(tokenizer, "ls").generate([[5]], greedy(60))
    assert answer == Completion("ls", tokenizer.encode("ls"), "stop", prompt_tokens=1)


def test_it_stops_at_the_length(tokenizer: Tokenizer) -> None:
    (answer,) = saying(tokenizer, "lsblk", end=False).generate([[5]], greedy(2))
    assert answer == Completion("ls", tokenizer.encode("ls"), "length", prompt_tokens=1)


def test_the_end_token_can_be_ignored(tokenizer: Tokenizer) -> None:
    model = decoder()
    Script(model, [0, 0, 7, 0])
    (answer,) = Engine(model, tokenizer).generate([[5]], greedy(4), ignore_end=True)
    assert (answer.tokens, answer.finish) == ([0, 0, 7, 0], "length")


def test_an_empty_prompt_is_refused(tokenizer: Tokenizer) -> None:
    engine = Engine(decoder(), tokenizer)
    with pytest.raises(UserError, match="empty"):
        engine.generate([[3], []], greedy(2))
    with pytest.raises(UserError, match="empty"):
        list(engine.stream([], greedy(2)))


def drawn(seed: int | None) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=20, temperature=1.5, seed=seed)


def test_a_seed_reproduces_and_seeds_differ(tokenizer: Tokenizer) -> None:
    engine = Engine(decoder(), tokenizer)
    (prompt,) = prompts(4)
    first, second, other = (engine.generate([prompt], drawn(seed)) for seed in (1, 1, 2))
    assert first == second != other
    assert engine.generate([prompt], drawn(None)) != engine.generate([prompt], drawn(None))


def test_seeds_leave_the_global_generator_alone(tokenizer: Tokenizer) -> None:
    engine, asked = Engine(decoder(), tokenizer), prompts(4)
    before = torch.get_rng_state()
    engine.generate(asked, drawn(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_of_a_batch_draw_for_themselves(tokenizer: Tokenizer) -> None:
    """Row n draws as a prompt alone does with the seed plus n."""
    engine = Engine(decoder(), tokenizer)
    (prompt,) = prompts(4)
    rows = engine.generate([prompt, prompt], drawn(1))
    assert rows[0] != rows[1]
    assert rows == [engine.generate([prompt], drawn(seed))[0] for seed in (1, 2)]


def test_rows_that_only_pad_the_table_are_never_said(tokenizer: Tokenizer) -> None:
    """A model may have more rows than the tokenizer has tokens."""
    model = decoder(vocab_size=320)
    with torch.no_grad():
        model.lm_head.weight[257:] *= 20
    engine = Engine(model, tokenizer)
    for config in (greedy(20), drawn(0)):
        (answer,) = engine.generate(prompts(4), config, ignore_end=True)
        assert max(answer.tokens) < tokenizer.vocab_size
