"""What the official client gets: the answers that the model gives when it is asked directly, in every form."""

import json
import math
from typing import Any

import openai
import pytest
from openai import OpenAI
from tiny_server import NEVER_ENDS, Running

from leveret.api import LoadedModel

HELLO: Any = [{"role": "user", "content": "hello"}]


def test_the_model_is_listed(client: OpenAI) -> None:
    [card] = client.models.list().data
    assert (card.id, card.object, card.owned_by) == ("tiny", "model", "leveret")
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_text_is_gone_on_with(client: OpenAI, model: LoadedModel) -> None:
    done = client.completions.create(model="tiny", prompt="abc", max_tokens=5)
    assert done.object == "text_completion"
    assert done.choices[0].text == model.generate("abc", raw=True, max_new_tokens=5)
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (3, 5, 8)
    assert done.usage.model_extra == {"context": {"used": 8, "limit": 256}}


def test_a_dialogue_is_answered_within_the_template(client: OpenAI, model: LoadedModel) -> None:
    done = client.chat.completions.create(model="tiny", messages=HELLO)
    [choice] = done.choices
    assert (choice.message.role, choice.message.content) == ("assistant", model.generate("hello"))
    assert choice.finish_reason == "length"  # the recipe's 8 tokens
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert client.chat.completions.create(model="tiny", messages=parts).choices[0].message == choice.message


def test_a_developer_message_is_the_systems(client: OpenAI) -> None:
    told = [
        client.chat.completions.create(model="tiny", messages=[{"role": role, "content": "Be brief."}, *HELLO])
        for role in ("system", "developer")
    ]  # type: ignore[misc, list-item]
    assert told[0].choices[0].message == told[1].choices[0].message
    assert told[0].usage == told[1].usage


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI, chat: bool) -> None:
    options: Any = {"model": "tiny", "max_tokens": 12, "extra_body": NEVER_ENDS, "seed": 3, "temperature": 1.0}
    usage: Any = {"stream": True, "stream_options": {"include_usage": True}}
    if chat:
        whole = client.chat.completions.create(messages=HELLO, **options)
        pieces = list(client.chat.completions.create(messages=HELLO, **options, **usage))
        assert pieces[0].choices[0].delta.role == "assistant"
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1])
        assert text == whole.choices[0].message.content
    else:
        whole = client.completions.create(prompt="abc", **options)
        pieces = list(client.completions.create(prompt="abc", **options, **usage))
        assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text
    assert {piece.id for piece in pieces} == {pieces[0].id}
    assert [p.choices[0].finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 2) + ["length"]
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage


def test_usage_is_not_in_a_stream_that_does_not_ask(client: OpenAI) -> None:
    pieces = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    assert all(piece.usage is None and piece.choices for piece in pieces)


def test_several_answers_have_the_seeds_that_follow(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HELLO, "temperature": 1.5, "max_tokens": 10}
    together = client.chat.completions.create(n=3, seed=7, **options)
    alone = [client.chat.completions.create(seed=7 + i, **options).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert len(set(alone)) > 1
    pieces = client.chat.completions.create(n=3, seed=7, stream=True, **options)
    texts = [""] * 3
    for piece in pieces:
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert texts == alone


def test_several_prompts_and_token_ids(client: OpenAI, model: LoadedModel) -> None:
    ids = model.tokenizer.encode("xyz")
    texts = client.completions.create(model="tiny", prompt=["abc", "xyz"], max_tokens=4)
    tokens = client.completions.create(model="tiny", prompt=[model.tokenizer.encode("abc"), ids], max_tokens=4)
    assert [c.text for c in texts.choices] == [c.text for c in tokens.choices]
    assert client.completions.create(model="tiny", prompt=ids, max_tokens=4).choices[0].text == texts.choices[1].text
    echoed = client.completions.create(model="tiny", prompt="xyz", max_tokens=4, echo=True)
    assert echoed.choices[0].text == "xyz" + texts.choices[1].text


def test_stop_strings_end_the_answer_and_are_no_part_of_it(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "abc", "max_tokens": 40, "extra_body": NEVER_ENDS}
    text = client.completions.create(**options).choices[0].text
    stop = text[9:12]
    cut = client.completions.create(stop=[stop, "never said"], **options).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.index(stop)], "stop")
    streamed = list(client.completions.create(stop=stop, stream=True, **options))
    assert "".join(piece.choices[0].text for piece in streamed) == cut.text


def test_log_probabilities_of_a_dialogue(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.logprobs is not None
    told = whole.logprobs.content
    assert told is not None
    assert len(told) == 6
    said = b"".join(bytes(token.bytes or []) for token in told).decode(errors="replace")
    assert said == whole.message.content
    for token in told:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # greedy
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1
    pieces = client.chat.completions.create(stream=True, **options)
    streamed = [t for p in pieces if p.choices[0].logprobs for t in p.choices[0].logprobs.content or []]
    assert streamed == told


def test_log_probabilities_of_a_text(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="abc", max_tokens=6, logprobs=2).choices[0]
    assert done.logprobs is not None
    assert len(done.logprobs.tokens or []) == len(done.logprobs.token_logprobs or []) == 6
    for token, logprob, top in zip(
        done.logprobs.tokens or [], done.logprobs.token_logprobs or [], done.logprobs.top_logprobs or [], strict=True
    ):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2


def test_a_bias_decides_and_penalties_reach_the_sampler(client: OpenAI, model: LoadedModel) -> None:
    [q] = model.tokenizer.encode("q")
    biased = client.completions.create(model="tiny", prompt="abc", max_tokens=4, logit_bias={str(q): 100})
    assert biased.choices[0].text == "qqqq"
    varied = client.completions.create(
        model="tiny", prompt="abc", max_tokens=12, frequency_penalty=2, presence_penalty=2, extra_body=NEVER_ENDS
    )
    directly = model.generate(
        "abc",
        raw=True,
        max_new_tokens=12,
        frequency_penalty=2,
        presence_penalty=2,
        logit_bias={0: -100, 1: -100, 2: -100},
    )
    assert varied.choices[0].text == directly


def test_both_names_of_the_most_tokens(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        done = client.chat.completions.create(model="tiny", messages=HELLO, extra_body={name: 3, **NEVER_ENDS})
        assert done.usage is not None
        assert done.usage.completion_tokens == 3


def test_an_answer_ends_with_the_context(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="a" * 250, max_tokens=2**31 - 1, extra_body=NEVER_ENDS)
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.model_extra is not None
    assert done.usage.model_extra["context"] == {"used": 256, "limit": 256}
    assert done.usage.completion_tokens == 7


def test_an_answer_keeps_to_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    done = client.chat.completions.create(model="tiny", messages=HELLO, response_format=form, max_tokens=60)
    assert done.choices[0].finish_reason == "stop"
    assert json.loads(done.choices[0].message.content or "")["yes"] in (True, False)


def test_refusals_are_the_clients_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="a" * 300)
    assert refused.value.code == "context_length_exceeded"
    assert "300" in refused.value.message
    assert "255" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_metrics_count_what_was_served(client: OpenAI, server: Running) -> None:
    import httpx

    def figure(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    route = 'leveret_requests_total{route="/v1/completions",status="200"}'
    before = [figure(name) for name in (route, "leveret_prompt_tokens_total", "leveret_completion_tokens_total")]
    client.completions.create(model="tiny", prompt="abcd", max_tokens=5, extra_body=NEVER_ENDS)
    after = [figure(name) for name in (route, "leveret_prompt_tokens_total", "leveret_completion_tokens_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 4, 5]
    assert figure("leveret_slots") == 8
    assert figure("leveret_answers_running") == 0
