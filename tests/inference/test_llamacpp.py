"""llama.cpp behind the face of our engine: what it answers, refuses and forgets."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ENGLISH, made_tokenizer, write_run

import leveret
from leveret.api import LoadedModel
from leveret.errors import UserError
from leveret.export.gguf import export_gguf
from leveret.inference.engine import Engine, Schedules
from leveret.inference.llamacpp import LlamaEngine
from leveret.inference.request import Delta, Request, Unfit

CONTEXT = 48


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """One model in our engine and in llama.cpp, without rounding."""
    folder = tmp_path_factory.mktemp("llamacpp")
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH)
    run = write_run(folder / "run", tokenizer, max_position_embeddings=CONTEXT)
    export_gguf(str(run), folder / "model.gguf", "f32")
    return leveret.load(str(run), "cpu"), leveret.load(str(folder / "model.gguf"), backend="llamacpp")


@pytest.fixture
def ours(both: tuple[LoadedModel, LoadedModel]) -> LoadedModel:
    return both[0]


@pytest.fixture
def theirs(both: tuple[LoadedModel, LoadedModel]) -> LoadedModel:
    return both[1]


def drive(scheduler: Schedules, requests: list[Request]) -> dict[Request, list[Delta]]:
    """All that comes of requests until each has ended."""
    for request in requests:
        scheduler.submit(request)
    found: dict[Request, list[Delta]] = {request: [] for request in requests}
    while any(not deltas or deltas[-1].finish is None for deltas in found.values()):
        for delta in scheduler.step():
            found[delta.request].append(delta)
    return found


def joined(deltas: list[Delta]) -> tuple[str, list[int], str | None]:
    return "".join(each.text for each in deltas), [token for each in deltas for token in each.tokens], deltas[-1].finish


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.3, "repetition_window": 5},
        {"logit_bias": {300: 2.5, 301: -1.0}},
        {"stop": ["to", "zzz"]},
        {"max_new_tokens": 1},
    ],
)
def test_greedy_answers_are_ours(options: dict[str, Any], ours: LoadedModel, theirs: LoadedModel) -> None:
    prompts = [text[start : start + 40] for text in ENGLISH[:3] for start in range(6)]
    given = {"max_new_tokens": 20} | options
    expected = ours.complete(prompts, **given)
    assert theirs.complete(prompts, **given) == expected
    assert theirs.generate(prompts[0], **given) == expected[0].text
    assert "".join(theirs.stream(prompts[0], **given)) == expected[0].text


def test_the_end_token_and_stop_strings_end_an_answer(ours: LoadedModel, theirs: LoadedModel) -> None:
    end = {ours.tokenizer.eos_id: 1000.0}
    for biased, finish in (({}, "length"), (end, "stop")):
        expected, found = (model.complete(["x"], logit_bias=biased, max_new_tokens=5)[0] for model in (ours, theirs))
        assert expected == found
        assert found.finish == finish
    twin = ours.tokenizer.special_tokens["<|im_end|>"]  # which llama.cpp takes for an end as well
    expected, found = (
        model.complete(["x"], logit_bias={twin: 1000.0}, max_new_tokens=5)[0] for model in (ours, theirs)
    )
    assert found == expected
    assert found.tokens == [twin] * 5
    whole = ours.generate("To show", max_new_tokens=20)
    stopped = theirs.complete(["To show"], stop=[whole[6:9]], max_new_tokens=20)[0]
    assert (stopped.text, stopped.finish) == (whole[: whole.index(whole[6:9])], "stop")


def test_past_the_context_the_window_slides_as_ours(ours: LoadedModel, theirs: LoadedModel) -> None:
    assert theirs.engine.context == CONTEXT - 1
    assert isinstance(ours.engine, Engine)
    for length in (20, CONTEXT - 1, CONTEXT + 40):
        prompt = (ours.encode(ENGLISH[0]) * 4)[:length]
        for slide in (True, False):
            config = ours.sampling(max_new_tokens=60)
            requests = [Request(list(prompt), config, slide=slide) for _ in range(2)]
            if not slide and length > CONTEXT:
                with pytest.raises(Unfit, match=f"has {length} tokens, and there is room for {CONTEXT - 1}"):
                    theirs.engine.scheduler(1).submit(requests[1])
                continue
            expected = drive(ours.engine.scheduler(1, CONTEXT - 1), requests[:1])[requests[0]]
            found = drive(theirs.engine.scheduler(1), requests[1:])[requests[1]]
            assert joined(found) == joined(expected)


def test_a_seed_draws_the_same_answer_again_and_options_are_heeded(theirs: LoadedModel) -> None:
    drawn = {"temperature": 1.5, "max_new_tokens": 12}
    first, second = (theirs.complete(["To show"] * 3, seed=5, **drawn) for _ in range(2))
    assert first == second
    assert len({each.text for each in first}) == 3
    greedy = theirs.generate("To show", max_new_tokens=12)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert theirs.generate("To show", seed=5, **drawn, **narrow) == greedy


def test_requests_wait_for_slots_and_a_cancelled_one_frees_its_own(theirs: LoadedModel) -> None:
    scheduler = theirs.engine.scheduler(2)
    config = theirs.sampling(max_new_tokens=30)
    requests = [Request(theirs.encode(text[:20]), config) for text in ENGLISH[:3]]
    alone = [theirs.engine.generate([request.prompt], config)[0] for request in requests]
    for request in requests:
        scheduler.submit(request)
    assert (scheduler.running, scheduler.waiting) == (0, 3)
    found: dict[Request, list[Delta]] = {request: [] for request in requests}

    def step() -> None:
        for delta in scheduler.step():
            found[delta.request].append(delta)

    step()
    assert (scheduler.running, scheduler.waiting, scheduler.slots) == (2, 1, 2)
    assert 0 < scheduler.cached_tokens < 2 * CONTEXT
    scheduler.cancel(requests[0])
    assert scheduler.running == 1
    while not (
        found[requests[1]][-1:]
        and found[requests[1]][-1].finish
        and found[requests[2]][-1:]
        and found[requests[2]][-1].finish
    ):
        step()
    assert [delta.finish for delta in found[requests[0]]][-1] == "cancelled"
    assert [delta.finish for delta in found[requests[0]]].count("cancelled") == 1
    for request, expected in list(zip(requests, alone, strict=True))[1:]:
        assert joined(found[request]) == (expected.text, expected.tokens, expected.finish)
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    scheduler.cancel(requests[0])
    assert scheduler.step() == []
    assert scheduler.bytes_per_slot == 2 * 2 * 2 * 16 * CONTEXT * 4  # keys and values, layers, heads, width, 4 bytes


def test_what_the_backend_has_not_is_refused(theirs: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("logprobs", 3),
        ("beams", 2),
        ("choices", ["a", "b"]),
        ("json_schema", {"type": "object"}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("draft_tokens", 4),
    ):
        with pytest.raises(UserError, match=f"{name} is not there with --backend llamacpp"):
            theirs.generate("x", **{name: value})
    with pytest.raises(UserError, match="per-count is not there"):
        theirs.generate("x", repetition_penalty=1.2, repetition_form="per-count")
    with pytest.raises(UserError, match="the prompt is empty"):
        theirs.engine.generate([[]], theirs.sampling())
    assert isinstance(theirs.engine, LlamaEngine)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match="needs xllamacpp: pip install"):
        LlamaEngine(theirs.engine.file, theirs.tokenizer).generate([[5]], theirs.sampling())


def test_a_file_that_llama_cpp_cannot_load_is_refused(theirs: LoadedModel, tmp_path: Path) -> None:
    assert isinstance(theirs.engine, LlamaEngine)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(theirs.engine.file.path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="is no whole GGUF file"):
        leveret.load(str(cut))
    with pytest.raises(UserError, match=r"llama.cpp cannot load .*cut.gguf"):
        LlamaEngine(replace(theirs.engine.file, path=cut), theirs.tokenizer).generate([[5]], theirs.sampling())
