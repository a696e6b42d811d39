"""Guesses change how fast a greedy answer comes, and nothing else."""

from typing import Any

import pytest
from tiny_engine import CONTEXT, SHAPES, decoder, plainly, prompts

from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.inference.request import Request
from leveret.inference.speculation import Lookup
from leveret.tokenizer import Tokenizer


def test_what_followed_the_same_words_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 1, 2, 5, 6, 1, 2])
    assert lookup.guess(3) == [5, 6, 1], "the newest place counts"
    lookup.add(3)
    assert lookup.guess(2) == [4, 1], "three tokens the same are better than two"
    lookup.add(9)
    assert lookup.guess(4) == []
    assert Lookup([]).guess(4) == Lookup([7]).guess(4) == []


def run(engine: Engine, requests: list[Request], slots: int = 4) -> tuple[list[list[int]], int, int, int]:
    """The answers; tokens guessed, tokens right, steps."""
    scheduler = engine.scheduler(slots)
    said: dict[Request, list[int]] = {each: [] for each in requests}
    for each in requests:
        scheduler.submit(each)
    steps = 0
    while scheduler.running or scheduler.waiting:
        for delta in scheduler.step():
            said[delta.request] += delta.tokens
        steps += 1
    return list(said.values()), scheduler.drafted, scheduler.accepted, steps


def asked(prompt: list[int], draft_tokens: int, tokens: int = 60, **more: Any) -> Request:
    sampling = SamplingConfig(max_new_tokens=tokens, draft_tokens=draft_tokens, **more)
    return Request(prompt, sampling, slide=True, ignore_end=True)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("context", [CONTEXT, 128])
@pytest.mark.parametrize("draft_tokens", [1, 4, 30])
def test_the_answer_is_that_without_guesses(tokenizer: Tokenizer, name: str, context: int, draft_tokens: int) -> None:
    """Alone and in company, some of which makes no guesses."""
    model = decoder(context, **SHAPES[name])
    engine = Engine(model, tokenizer)
    repeating = prompts(4)[0] * 3
    asking = [repeating, *prompts(9, 3)]
    expected = [plainly(model, prompt, 60) for prompt in asking]
    assert run(engine, [asked(repeating, draft_tokens)])[0] == expected[:1]
    mixed = [asked(prompt, draft_tokens if i < 2 else 0) for i, prompt in enumerate(asking)]
    assert run(engine, mixed)[0] == expected


def test_an_answer_that_repeats_itself_takes_fewer_steps(tokenizer: Tokenizer) -> None:
    """Without value, position or much attention to anything but the last token, an answer soon goes round."""
    model = decoder(256, position="none", sliding_window=1)
    engine = Engine(model, tokenizer)
    (prompt,) = prompts(3)
    plain, none, _, slow = run(engine, [asked(prompt, 0, 200)])
    found, drafted, accepted, fast = run(engine, [asked(prompt, 8, 200)])
    assert found == plain
    assert (none, slow) == (0, 200)
    assert 0 < accepted <= drafted
    assert fast == 200 - accepted  # each right guess is a step less
    assert fast < 100


def test_ends_and_stop_strings_within_a_guess_count(tokenizer: Tokenizer) -> None:
    model = decoder(256, position="none", sliding_window=1)
    engine = Engine(model, tokenizer)
    (prompt,) = prompts(3)
    text = engine.generate([prompt], SamplingConfig(max_new_tokens=100), ignore_end=True)[0].text
    for stop in ([], [text[40:43]], [text[61]]):
        for tokens in (33, 50):
            config = SamplingConfig(max_new_tokens=tokens, stop=stop)
            plain = engine.generate([prompt], config)
            assert engine.generate([prompt], config.model_copy(update={"draft_tokens": 7})) == plain


@pytest.mark.parametrize("more", [{"repetition_penalty": 1.3}, {"logprobs": 2}, {"frequency_penalty": 0.5}])
def test_with_penalties_or_logprobs_nothing_is_guessed(tokenizer: Tokenizer, more: dict[str, Any]) -> None:
    engine = Engine(decoder(128), tokenizer)
    prompt = prompts(4)[0] * 3
    assert run(engine, [asked(prompt, 5, 20, **more)])[:2] == (run(engine, [asked(prompt, 0, 20, **more)])[0], 0)


def test_draws_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="draft_tokens are for temperature 0"):
        SamplingConfig(temperature=1.0, draft_tokens=4)
