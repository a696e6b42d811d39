"""A Modelfile, by which Ollama makes a model of a GGUF file: the chat template in Go's notation, and how to sample.

A GGUF file holds the chat template as Jinja, which Ollama does not run. Its own templates are written here from what
ours makes of single turns; where a whole conversation is more than its turns one after the other, there is none.
"""

from __future__ import annotations

from typing import NamedTuple

from leveret.errors import UserError
from leveret.export.source import Source
from leveret.inference.config import SamplingConfig
from leveret.tokenizer.template import render_text
from leveret.tokenizer.tokenizer import Tokenizer

CONTENT = "\ue000"
"""Stands for what somebody says: a character of nobody's."""
ROLES = ("system", "user", "assistant")


class Turns(NamedTuple):
    """A chat template that writes turn after turn. turns: by role, the text before and after the content."""

    begin: str
    turns: dict[str, tuple[str, str]]
    prompt: str


def modelfile(source: Source, gguf: str) -> tuple[str, list[str]]:
    """The text of a Modelfile for a file of this name, and what Ollama will do otherwise, a line each."""
    lines, notes = [f"FROM ./{gguf}"], []
    turns = None
    if source.chats and source.tokenizer.chat_template is not None:
        turns = turns_of(source.tokenizer)
        if turns is None or '"""' in (template := in_go(turns)):
            turns = None
            notes.append("Ollama's templates cannot say this chat template: its Modelfile hands prompts on as they are")
    lines.append(f'TEMPLATE """{"{{ .Prompt }}" if turns is None else template}"""')
    if turns is not None and (stop := turns.turns["assistant"][1].strip()):
        lines.append(f'PARAMETER stop "{_quoted(stop)}"')
    values, more = _parameters(source.recipe.generation)
    values["num_ctx"] = source.config.max_position_embeddings
    lines += [f"PARAMETER {name} {value}" for name, value in values.items()]
    return "\n".join(lines) + "\n", notes + more


def turns_of(tokenizer: Tokenizer) -> Turns | None:
    """The chat template, if what it writes is turn after turn whatever stands around them; else None."""

    def text(*roles: str, prompt: bool = False) -> str:
        said = [{"role": role, "content": CONTENT} for role in roles]
        return render_text(tokenizer, said, prompt)

    try:
        begin = text()
        turns = {}
        for role in ROLES:
            before, found, after = text(role).removeprefix(begin).partition(CONTENT)
            if not found:
                return None
            turns[role] = (before, after)
        prompt = text("user", prompt=True).removeprefix(text("user"))
        order = ("system", "user", "assistant", "user", "assistant", "user")
        whole = begin + "".join(CONTENT.join(turns[role]) for role in order) + prompt
        return Turns(begin, turns, prompt) if text(*order, prompt=True) == whole else None
    except UserError:  # it refuses some conversation
        return None


def in_go(turns: Turns) -> str:
    """The same as a text/template of Go's. What is said goes in as it is, white space around it too."""

    def written(role: str) -> str:
        before, after = (_literal(part) for part in turns.turns[role])
        return f"{before}{{{{ .Content }}}}{after}"

    branches = "{{ else ".join(f'if eq .Role "{role}" }}}}{written(role)}' for role in ROLES)
    each = f"{{{{ range .Messages }}}}{{{{ {branches}{{{{ end }}}}{{{{ end }}}}"
    return _literal(turns.begin) + each + _literal(turns.prompt)


def _literal(text: str) -> str:
    """Every brace is written so: one at the end would make three with the next action's two."""
    return text.replace("{", '{{ "{" }}')


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _parameters(config: SamplingConfig) -> tuple[dict[str, float], list[str]]:
    """Every one is written, since Ollama's own defaults draw."""
    values: dict[str, float] = {
        "temperature": config.temperature,
        "top_k": config.top_k or 0,
        "top_p": config.top_p or 1.0,
        "min_p": config.min_p or 0.0,
        "num_predict": config.max_new_tokens,
        "repeat_penalty": config.repetition_penalty if config.repetition_form == "once" else 1.0,
        "repeat_last_n": config.repetition_window or -1,
    }
    other = config.repetition_penalty != 1.0 and config.repetition_form != "once"
    return values, ["Ollama has no penalty by the number of occurrences: its Modelfile has none"] * other
