"""The Modelfile for Ollama: its Go template writes what our chat template writes, its parameters are the recipe's."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_recipes import write_small
from tiny_models import ENGLISH, made_tokenizer, write_run

from leveret.export.gguf import export_gguf
from leveret.export.modelfile import in_go, turns_of
from leveret.tokenizer.template import render_text, template_names
from leveret.tokenizer.tokenizer import Tokenizer

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "liste les fichiers {{ .Role }}"},
    {"role": "assistant", "content": "ls\n-l"},
    {"role": "user", "content": 'and "12" more'},
]


def go(template: str, messages: Sequence[dict[str, str]]) -> str:
    """As much of Go's text/template as a Modelfile of ours uses: range, if eq, else if, fields, texts."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    texts, actions = parts[::2], parts[1::2]
    start, end = actions.index("range .Messages"), len(actions) - 1
    while actions[end].startswith('"'):
        end -= 1
    assert actions[end - 1 : end + 1] == ["end", "end"]

    def run(begin: int, stop: int, message: dict[str, str]) -> str:
        out, taken, writing = "", False, True
        for number in range(begin, stop):
            action = actions[number]
            if found := re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', action):
                writing = not taken and message["role"] == found[1]
                taken = taken or writing
            elif action == "end":
                writing = True
            elif writing:
                out += message["content"] if action == ".Content" else action[1:-1]
            out += texts[number + 1] if writing else ""
        return out

    head = "".join(texts[i] + (actions[i][1:-1] if i < start else "") for i in range(start + 1))
    assert texts[start + 1] == ""
    turns = "".join(run(start + 1, end, message) for message in messages)
    return head + turns + texts[end + 1] + "".join(
        actions[i][1:-1] + texts[i + 1] for i in range(end + 1, len(actions))
    )  # fmt: skip


@pytest.mark.parametrize("name", template_names())
def test_every_template_of_ours_is_said_in_gos_notation(name: str) -> None:
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH, name)
    turns = turns_of(tokenizer)
    assert turns is not None
    for messages in (DIALOGUE, DIALOGUE[1:2], DIALOGUE[1:], DIALOGUE[:2]):
        assert go(in_go(turns), messages) == render_text(tokenizer, messages, add_generation_prompt=True)


BRACES = (
    "{% for m in messages %}{{ m['role'] + ' {' + m['content'] + '} {{x} ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant {' }}{% endif %}"
)


def test_braces_of_a_template_stay_braces() -> None:
    """In Go's notation the first two of three would begin an action."""
    tokenizer = made_tokenizer("bpe-gpt2", ENGLISH, None)
    tokenizer = Tokenizer(tokenizer.definition, tokenizer.roles, BRACES)
    turns = turns_of(tokenizer)
    assert turns is not None
    assert "{{{" not in in_go(turns)
    assert go(in_go(turns), DIALOGUE) == render_text(tokenizer, DIALOGUE, add_generation_prompt=True)


OTHER = "{% for m in messages %}{% if loop.first %}[first]{% endif %}{{ m['content'] }}{% endfor %}"
REFUSES = "{{ raise_exception('no') }}"


def test_a_template_that_is_more_than_its_turns_is_left_out(tmp_path: Path) -> None:
    made = made_tokenizer("bpe-gpt2", ENGLISH, None)
    for template in (OTHER, REFUSES):
        tokenizer = Tokenizer(made.definition, made.roles, template)
        assert turns_of(tokenizer) is None
    run = write_run(tmp_path / "run", tokenizer, "finetune")
    notes = export_gguf(str(run), tmp_path / "m.gguf")
    assert any("Ollama's templates cannot say this chat template" in note for note in notes)
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "m.Modelfile").read_text()


def parameters(text: str) -> dict[str, Any]:
    found = [line.split(" ", 2)[1:] for line in text.splitlines() if line.startswith("PARAMETER ")]
    return {name: value.strip('"') if name == "stop" else float(value) for name, value in found}


def test_it_samples_as_the_recipe_says(tmp_path: Path) -> None:
    small = write_small("parchment-166m", tmp_path)
    export_gguf(str(small.path), tmp_path / "p.gguf")
    text = (tmp_path / "p.Modelfile").read_text()
    assert text.startswith('FROM ./p.gguf\nTEMPLATE """{{ range .Messages }}')
    assert parameters(text) == {
        "stop": "<eos>", "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "num_predict": 100,
        "repeat_penalty": 1.1, "repeat_last_n": -1, "num_ctx": 128,
    }  # fmt: skip
    drawn = write_run(tmp_path / "drawn", small.tokenizer, generation={"temperature": 0.8, "top_p": 0.95, "top_k": 7})
    export_gguf(str(drawn), tmp_path / "d.gguf")
    text = (tmp_path / "d.Modelfile").read_text()
    assert 'TEMPLATE """{{ .Prompt }}"""' in text  # a base model goes on with the text
    said = parameters(text)
    assert (said["temperature"], said["top_p"], said["top_k"]) == (0.8, 0.95, 7)
    assert "stop" not in said
