"""How to use a model, for its card: transformers, Leveret, llama.cpp; what each needs, and what it cannot."""

from __future__ import annotations

from leveret.errors import UserError
from leveret.export.gguf import shape_in_llamacpp
from leveret.export.shapes import OWN, facts_for_transformers
from leveret.export.source import Source


def usage(source: Source, name: str) -> str:
    """The card's section, in which `name` loads the model."""
    parts = ["## How to use", _transformers(source, name), _leveret(source, name), _llamacpp(source)]
    return "\n\n".join(parts)


def _transformers(source: Source, name: str) -> str:
    remote = ", trust_remote_code=True" * (facts_for_transformers(source.config)["architectures"] == [OWN])
    chats = source.chats and source.tokenizer.chat_template is not None
    prompt = (source.recipe.sample_prompts or ["Once upon a time"])[0]
    ask = (
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        if chats
        else f'inputs = tokenizer({prompt!r}, return_tensors="pt")'
    )
    why = (
        "transformers has no class of this shape; `modeling_leveret.py` beside the weights is run in its place, if you "
        "trust it.\n\n"
        if remote
        else ""
    )
    return (
        f"### transformers\n\n{why}```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}{remote})\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r}{remote})\n{ask}\n"
        "out = model.generate(**inputs)  # sampling and length as generation_config.json says\n"
        'print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```'
    )


def _leveret(source: Source, name: str) -> str:
    ask = "chat runs/model" if source.chats else 'generate runs/model "Once upon a time"'
    return (
        f"### Leveret\n\n```console\n$ leveret import hf {name} --run-dir runs/model\n"
        f"$ leveret {ask}\n```\n\nNo code of the model's is run."
    )


def _llamacpp(source: Source) -> str:
    try:
        shape_in_llamacpp(source.config)
    except UserError as error:
        return f"### llama.cpp\n\nNot possible: {error}."
    return (
        "### llama.cpp, Ollama\n\n```console\n$ leveret export gguf runs/model model.gguf --dtype q8_0\n"
        "$ llama-cli -m model.gguf\n$ ollama create model -f model.Modelfile\n```"
    )
