"""Chat templates from the hub are programs: they end, write little, see nothing of ours, and fail in one line."""

import os
import threading
import time
from pathlib import Path

import pytest

from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, render, train_tokenizer
from leveret.tokenizer.rendering import MEMORY, MOST_TEXT, SECONDS, TemplateFailure, render_apart, render_here
from leveret.tokenizer.template import template_names, template_text

MESSAGES = [{"role": "user", "content": "<eos> and <|im_end|> are words here"}, {"role": "assistant", "content": "yes"}]
OURS = "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    config = TokenizerConfig(kind="bpe", vocab_size=300, special_tokens=["<pad>", "<eos>"], eos_token="<eos>")
    return train_tokenizer(config, ["user and assistant speak words here"] * 9)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return Tokenizer(tokenizer.definition, tokenizer.roles, template)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, f"was ended: it took more than {SECONDS:g} s"),
        (DOUBLING, "fails: MemoryError|was ended"),
        ("{{ 'a' * 10**10 }}", "fails: MemoryError"),
        ("{{ 'a'|center(9999999999) }}", "fails: MemoryError"),
        ("{{ '%9999999999d' % 1 }}", "fails"),
        (f"{{{{ 'a' * {MOST_TEXT + 1} }}}}", "at most 16,777,216 are taken"),
        ("{{ lipsum(n=10000000) }}", "was ended"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.environ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(role='x') }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "fails|refuses"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "fails: RecursionError"),
        ("{% for", "unexpected"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ raise_exception('not today') }}", "refuses the messages: not today"),
        ("x" * (2**20 + 1), "at most 1,048,576 are read"),
    ],
)
def test_a_hostile_template_ends_in_one_line(template: str, said: str, trained: Tokenizer) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"^the chat template .*({said})") as caught:
        render(with_template(trained, template), MESSAGES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - begun < 20


def test_after_a_template_that_was_ended_the_next_is_rendered(trained: Tokenizer) -> None:
    with pytest.raises(UserError):
        render(with_template(trained, ENDLESS), MESSAGES)
    assert trained.decode(render(with_template(trained, OURS), MESSAGES).ids).startswith("user: <eos> and")


def test_text_that_spells_a_special_token_stays_text(trained: Tokenizer) -> None:
    found = render(with_template(trained, OURS), MESSAGES)
    assert found.ids.count(trained.special_tokens["<eos>"]) == len(MESSAGES)
    assert "user: <eos> and <|im_end|> are words here" in trained.decode(found.ids)


def test_both_ways_of_rendering_give_the_same() -> None:
    for name in template_names():
        text = template_text(name)
        assert text is not None
        values = {"messages": [{"role": "user", "content": "é \ud800 \u2028"}], "add_generation_prompt": True}
        values |= {"bos_token": "<s>", "eos_token": "</s>"}
        assert outcome(render_apart, text, values) == outcome(render_here, text, values)


def outcome(way: object, text: str, values: dict[str, object]) -> str:
    try:
        return str(way(text, values))  # type: ignore[operator]
    except TemplateFailure as error:
        return f"failure {error}"


def test_the_program_sees_no_environment_of_ours_and_has_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    with pytest.raises(TemplateFailure):
        render_apart(ENDLESS, {})  # so that a new program starts with this environment
    render_apart("{{ 1 }}", {})
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    programs = [pid for pid in children if b"rendering.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert programs
    for pid in programs:
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert f" {MEMORY} " in Path(f"/proc/{pid}/limits").read_text()


def test_many_threads_each_get_their_own_answer() -> None:
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: render_apart("{{ n }}", {"n": n})})) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) for n in range(20)}
