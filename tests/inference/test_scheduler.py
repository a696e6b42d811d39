"""Requests that join and leave at any step are answered as if each were alone."""

import random
from typing import Any

import pytest
import torch
from tiny_engine import CONTEXT, SHAPES, decoder, plainly, prompts

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.inference.request import Delta, Request, Unfit
from leveret.inference.scheduler import Scheduler
from leveret.tokenizer import Tokenizer


def request(prompt: list[int], tokens: int = 12, slide: bool = False, **sampling: Any) -> Request:
    config = SamplingConfig.model_validate({"max_new_tokens": tokens} | sampling)
    return Request(prompt, config, slide=slide, ignore_end=True)


def answers(scheduler: Scheduler, requests: list[Request]) -> list[list[int]]:
    """All at once, to the end."""
    for each in requests:
        scheduler.submit(each)
    deltas = finish(scheduler)
    return [tokens_of(each, deltas) for each in requests]


def finish(scheduler: Scheduler) -> list[Delta]:
    deltas = []
    while scheduler.running or scheduler.waiting:
        deltas += scheduler.step()
    return deltas


def tokens_of(request: Request, deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas if delta.request is request for token in delta.tokens]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_answers_do_not_depend_on_who_comes_and_goes(
    tokenizer: Tokenizer, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests come at random steps into few slots, some alike, some past the context, some are cancelled."""
    monkeypatch.setattr("leveret.inference.scheduler.WORTH_COPYING", 2)
    monkeypatch.setattr("leveret.inference.scheduler.PIECE", 5)
    chance = random.Random(seed)
    context = 2 * CONTEXT
    model = decoder(context, **SHAPES[name])
    scheduler = Engine(model, tokenizer).scheduler(3)
    shared = prompts(CONTEXT)[0]
    requests = []
    for prompt in prompts(*[chance.randint(1, context // 2) for _ in range(16)]):
        start = shared[: chance.randint(2, len(shared))] if chance.random() < 0.7 else []
        requests.append(request(start + prompt, chance.randint(1, context), slide=True))
    coming, dropped, deltas = list(requests), set(), []
    while coming or scheduler.running or scheduler.waiting:
        while coming and chance.random() < 0.3:
            scheduler.submit(coming.pop())
        if chance.random() < 0.1:
            dropped.add(unlucky := chance.choice(requests))
            scheduler.cancel(unlucky)
        deltas += scheduler.step()
        assert scheduler.running <= 3
    for each in requests:
        expected = plainly(model, each.prompt, each.sampling.max_new_tokens)
        found = tokens_of(each, deltas)
        assert found == expected[: len(found)]
        ends = [delta.finish for delta in deltas if delta.request is each and delta.finish]
        assert ends == ["length"] or (ends in ([], ["cancelled"]) and each in dropped)
        assert len(found) == len(expected) or each in dropped
    assert scheduler.prefix_hits > 0


def test_one_that_joins_is_served_in_the_next_step(tokenizer: Tokenizer) -> None:
    model = decoder()
    scheduler = Engine(model, tokenizer).scheduler(2)
    first, second, third = (request(prompt, 6) for prompt in prompts(5, 9, 3))
    scheduler.submit(first)
    assert [delta.request for delta in scheduler.step()] == [first]
    scheduler.submit(second)
    scheduler.submit(third)
    assert [delta.request for delta in scheduler.step()] == [second, first]
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    deltas = finish(scheduler)
    assert tokens_of(third, deltas) == plainly(model, third.prompt, 6)


def test_a_cancelled_request_frees_its_slot_at_once(tokenizer: Tokenizer) -> None:
    scheduler = Engine(decoder(), tokenizer).scheduler(1)
    running, waiting, next_one = (request(prompt) for prompt in prompts(4, 5, 6))
    for each in (running, waiting, next_one):
        scheduler.submit(each)
    scheduler.step()
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    assert (scheduler.running, scheduler.waiting) == (0, 1)
    deltas = scheduler.step()
    assert [(delta.request, delta.finish) for delta in deltas[:2]] == [(waiting, "cancelled"), (running, "cancelled")]
    assert deltas[2].request is next_one
    scheduler.cancel(running)  # is not here any more
    assert all(delta.request is next_one for delta in finish(scheduler))


def test_a_shared_beginning_is_read_once(tokenizer: Tokenizer) -> None:
    """By rows that come together, while it is read, and after those who had it are gone."""
    model = decoder()
    engine = Engine(model, tokenizer)
    scheduler = engine.scheduler(3)
    system, *ends = prompts(30, 3, 5, 4, 6)
    read: list[int] = []
    forward = engine.runner.forward

    def counting(ids_BT: torch.Tensor, real: list[int], *more: Any) -> torch.Tensor:
        read.append(sum(real))
        return forward(ids_BT, real, *more)

    engine.runner.forward = counting  # type: ignore[method-assign]
    together = [request(system + end, 1) for end in ends[:3]]
    found = answers(scheduler, together)
    assert found == [plainly(model, each.prompt, 1) for each in together]
    assert sum(read) == 30 + 3 + 5 + 4
    assert scheduler.prefix_hits == 2
    later = request(system + ends[3], 1)
    assert answers(scheduler, [later]) == [plainly(model, later.prompt, 1)]
    assert sum(read) == 30 + 3 + 5 + 4 + 6
    assert scheduler.prefix_hits == 3


def test_a_dialogue_goes_on_from_what_its_slot_remembers(tokenizer: Tokenizer) -> None:
    """Two of them, turn by turn, in two slots."""
    model = decoder()
    scheduler = Engine(model, tokenizer).scheduler(2)
    dialogues = prompts(9, 12)
    for turn in range(3):
        for dialogue, more in zip(dialogues, prompts(4, 2), strict=True):
            (said,) = answers(scheduler, [request(dialogue, 3)])
            assert said == plainly(model, dialogue, 3)
            dialogue += said + more
        assert scheduler.prefix_hits == 2 * turn


def test_a_long_prompt_does_not_keep_others_waiting(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leveret.inference.scheduler.PIECE", 8)
    model = decoder()
    scheduler = Engine(model, tokenizer).scheduler(2)
    short, long = (request(prompt, 10) for prompt in prompts(3, 40))
    scheduler.submit(short)
    scheduler.step()
    scheduler.submit(long)
    seen = [[delta.request for delta in scheduler.step()] for _ in range(5)]
    assert seen == [[short]] * 4 + [[long, short]]  # five pieces of eight
    assert tokens_of(long, finish(scheduler)) == plainly(model, long.prompt, 10)[1:]


def test_who_came_first_reads_first(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when a slot becomes free before those of two that read."""
    for name in ("PIECE", "PIECE_ALONE"):
        monkeypatch.setattr(f"leveret.inference.scheduler.{name}", 8)
    scheduler = Engine(decoder(), tokenizer).scheduler(4)
    coming = [request(prompt, n) for prompt, n in zip(prompts(3, 4, 39, 40), (3, 5, 9, 9), strict=True)]
    for each in coming:
        scheduler.submit(each)
    steps = [[delta.request for delta in scheduler.step()] for _ in range(11)]
    first_tokens = [next(n for n, served in enumerate(steps) if each in served) for each in coming]
    assert first_tokens == [0, 0, 5, 10]  # then five pieces each


def test_memory_is_what_it_says_and_stays_so(tokenizer: Tokenizer) -> None:
    scheduler = Engine(decoder(num_key_value_heads=1), tokenizer).scheduler(4, capacity=32)
    storage = scheduler.cache.keys.untyped_storage(), scheduler.cache.values.untyped_storage()
    assert 4 * scheduler.bytes_per_slot == sum(each.nbytes() for each in storage)
    assert scheduler.bytes_per_slot == 2 * 2 * 1 * 32 * 8 * 4  # k and v; layers; K; S; D; bytes
    for round_ in range(3):
        answers(scheduler, [request(prompt, 9) for prompt in prompts(*range(1 + round_, 9))])
    after = scheduler.cache.keys.untyped_storage(), scheduler.cache.values.untyped_storage()
    assert [each.data_ptr() for each in after] == [each.data_ptr() for each in storage]
    assert 0 < scheduler.cached_tokens <= 4 * 32
    assert (scheduler.running, scheduler.waiting, scheduler.slots) == (0, 0, 4)


def test_what_does_not_fit_is_refused_and_others_go_on(tokenizer: Tokenizer) -> None:
    model = decoder()
    scheduler = Engine(model, tokenizer).scheduler(2, capacity=20)
    fits = request(prompts(20)[0], 1)
    scheduler.submit(fits)
    with pytest.raises(Unfit, match=r"21 tokens.*room for 20"):
        scheduler.submit(request(prompts(21)[0]))
    with pytest.raises(UserError, match="empty"):
        scheduler.submit(request([]))
    for bad in (-1, 257):
        with pytest.raises(UserError, match="outside of 0 to 256"):
            scheduler.submit(request([3, bad, 5]))
    with pytest.raises(UserError, match="beams"):
        scheduler.submit(request([1], beams=2))
    assert tokens_of(fits, finish(scheduler)) == plainly(model, fits.prompt, 1)


@pytest.mark.parametrize("length", [1, 15, 16])
def test_without_sliding_an_answer_ends_with_the_context(tokenizer: Tokenizer, length: int) -> None:
    """All of it is used: the last token of the answer needs no room."""
    model = decoder(CONTEXT)
    scheduler = Engine(model, tokenizer).scheduler(1)
    each = request(prompts(length)[0], 100)
    scheduler.submit(each)
    deltas = finish(scheduler)
    assert tokens_of(each, deltas) == plainly(model, each.prompt, CONTEXT - length + 1)
    assert deltas[-1].finish == "length"


def test_several_draws_of_a_prompt_are_those_of_their_seeds(tokenizer: Tokenizer) -> None:
    """n answers are n requests; each is what it would be alone, in company that greedily goes its own way."""
    engine = Engine(decoder(), tokenizer)
    (prompt,) = prompts(20)
    drawn = [request(prompt, temperature=1.0, top_p=0.9, seed=7 + i) for i in range(4)]
    found = answers(engine.scheduler(6), [request(prompts(9)[0]), *drawn, request(prompt)])[1:5]
    assert len({tuple(tokens) for tokens in found}) == 4
    assert found == [answers(engine.scheduler(1), [request(prompt, **_fields(each))])[0] for each in drawn]


def _fields(each: Request) -> dict[str, Any]:
    return {"temperature": 1.0, "top_p": 0.9, "seed": each.sampling.seed}


@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_the_decoders_own(tokenizer: Tokenizer, name: str) -> None:
    """Whatever penalties, temperature and truncation make of them."""
    model = decoder(**SHAPES[name])
    (prompt,) = prompts(6)
    config = SamplingConfig(max_new_tokens=8, logprobs=3, temperature=2.0, top_k=9, presence_penalty=1.0, seed=0)
    (answer,) = Engine(model, tokenizer).generate([prompt], config, ignore_end=True)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer.tokens]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(answer.infos) == 8
    for info, token, own in zip(answer.infos, answer.tokens, logprobs, strict=True):
        assert info.chosen.id == token
        assert info.chosen.text_bytes == tokenizer.token_bytes(token)
        assert info.chosen.logprob == pytest.approx(float(own[token]), abs=1e-4)
        best = own.topk(3)
        assert [choice.id for choice in info.top] == best.indices.tolist()
        assert [choice.logprob for choice in info.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_logprobs_are_for_those_who_ask(tokenizer: Tokenizer) -> None:
    scheduler = Engine(decoder(), tokenizer).scheduler(3)
    asked = [request(prompt, 2, logprobs=k) for prompt, k in zip(prompts(3, 4, 5), (None, 0, 2), strict=True)]
    for each in asked:
        scheduler.submit(each)
    tops = {delta.request: [len(info.top) for info in delta.infos] for delta in scheduler.step()}
    assert [tops[each] for each in asked] == [[], [0], [2]]


def test_the_window_of_a_long_answer_slides(tokenizer: Tokenizer) -> None:
    model = decoder(CONTEXT)
    (prompt,) = prompts(3)
    (answer,) = Engine(model, tokenizer).generate([prompt], SamplingConfig(max_new_tokens=300), ignore_end=True)
    assert answer.tokens == plainly(model, prompt, 300)
