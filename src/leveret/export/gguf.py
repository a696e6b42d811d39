"""A run's model as one GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio, ...) load.

    RUN --> the shape as keys of transformers --> llama.cpp's architecture and its keys
        --> weights under transformers' names --> llama.cpp's names, its order of rotated pairs, its formats of rows
        --> tokenizer (gguf_tokenizer.py) ------> tokens, merges or scores, pre-tokenizer, chat template
        --> chat template, sampling ------------> FILE.Modelfile, for Ollama (modelfile.py)

The names of tensors are those of the table in the gguf package. Rows that pad the table of embeddings are left out,
since llama.cpp would draw tokens from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from leveret.errors import UserError
from leveret.export.gguf_tokenizer import add_tokenizer
from leveret.export.modelfile import modelfile
from leveret.export.shapes import NoClass, facts_of
from leveret.export.source import Source, find_source
from leveret.model.config import ModelConfig
from leveret.model.weights import to_interleaved

if TYPE_CHECKING:
    import gguf
    from gguf import GGUFWriter

FORMAT_VERSION = 1
OURS = "leveret.model"
"""The key under which a file of ours says what llama.cpp has no key for, as JSON: what the model was made from."""
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "GPT2LMHeadModel": "gpt2"}
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
"""What --dtype takes, and gguf's name for a file mostly of it."""
TABLES = ("token_embd.weight", "output.weight")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""Ends of the names of matrices that GPT-2 has input-first on disk."""


def export_gguf(reference: str, path: Path, dtype: str = "f16") -> list[str]:
    """Writes RUN, RUN/STAGE or RUN/STAGE@STEP as a new GGUF file, and a Modelfile for Ollama; adapters are merged.

    Args:
        dtype: of the matrices, a key of FILE_TYPES. Vectors stay f32; under q4_0 the embedding and the head are q8_0,
            and rows that are no multiple of a format's block are f16.

    Returns:
        What llama.cpp or Ollama will do otherwise than the model here, a line each.

    Raises:
        UserError: there is no such model, llama.cpp has none of its shape or with its tokenizer, or the file is there.
    """
    if dtype not in FILE_TYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(FILE_TYPES)}")
    if path.suffix != ".gguf":
        raise UserError(f"{path} must end in .gguf, by which `leveret chat` and others know such a file")
    beside = path.with_suffix(".Modelfile")
    for file in (path, beside):
        if file.exists():
            raise UserError(f"{file} is there already; take another name")
    gguf = import_gguf()
    source = find_source(reference)
    facts = shape_in_llamacpp(source.config)
    architecture = ARCHITECTURES[facts["architectures"][0]]
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    notes = add_tokenizer(writer, source.tokenizer)
    add_shape(writer, facts, source.config, source.tokenizer.vocab_size)
    writer.add_name(source.recipe.name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(OURS, json.dumps(_ours(source)))
    for name, tensor in _tensors(source, architecture):
        kind = _row_format(name, tensor, dtype)
        rows = gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name, rows, raw_dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    text, more = modelfile(source, path.name)
    beside.write_text(text, encoding="utf-8")
    return notes + more


def import_gguf() -> Any:
    """The gguf package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the gguf package: pip install 'leveret[export]'") from None
    return gguf


def shape_in_llamacpp(config: ModelConfig) -> dict[str, Any]:
    """The shape as transformers' keys.

    Raises:
        UserError: llama.cpp has no architecture for it.
    """
    try:
        facts = facts_of(config)
    except NoClass as error:
        raise UserError(_no_architecture(f"{error.knob}: {error.value}")) from None
    window = facts.get("sliding_window")
    if window is not None and window < config.max_position_embeddings:
        raise UserError(_no_architecture(f"sliding_window: {window}"))
    kind = facts["architectures"][0]
    if kind == "MistralForCausalLM":  # with a window that nothing outgrows it is Llama
        return facts | {"architectures": ["LlamaForCausalLM"]}
    if kind == "Qwen3ForCausalLM" and facts["attention_bias"]:
        raise UserError(_no_architecture("qk_norm and attention_bias"))
    return facts


def _no_architecture(knob: str) -> str:
    return (
        f"llama.cpp has no architecture for a model with {knob}; Llama-, Qwen3- and GPT-2-shaped models without "
        "sliding windows can be exported to it"
    )


def _ours(source: Source) -> dict[str, Any]:
    recipe = source.recipe
    known = {"generation": recipe.generation.model_dump(), "sample_prompts": recipe.sample_prompts}
    return {
        "format_version": FORMAT_VERSION,
        "stage": source.stage,
        "chats": source.chats,
        "step": source.checkpoint.step,
        "weights_sha256": source.checkpoint.weights_sha256,
        "roles": asdict(source.tokenizer.roles),
        "chat_template": source.tokenizer.chat_template,
        "model": source.config.model_dump(),
        "recipe": {"name": recipe.name, "description": recipe.description, **known},
    }


def add_shape(writer: GGUFWriter, facts: dict[str, Any], config: ModelConfig, vocabulary: int) -> None:
    """Writes the numbers of a shape; `facts` are transformers' keys of it."""
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if facts["architectures"][0] == "GPT2LMHeadModel":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _tensors(source: Source, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under llama.cpp's name, in its layout, [out, in]."""
    name_of = _names(architecture, source.config.num_hidden_layers)
    for name, tensor in source.weights().items():
        theirs = name_of(name)
        if theirs in TABLES:
            tensor = tensor[: source.tokenizer.vocab_size]
        elif architecture == "gpt2" and name.endswith(TRANSPOSED):
            tensor = tensor.t()
        elif architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = to_interleaved(tensor, source.config.head_width)  # llama.cpp's llama rotates neighbours
        yield theirs, tensor.contiguous()


def _names(architecture: str, layers: int) -> Callable[[str], str]:
    gguf = import_gguf()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, layers)

    def name_of(name: str) -> str:
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, f"the shape was let through, and llama.cpp has no place for {name}"
        return str(theirs)

    return name_of


def _row_format(name: str, tensor: Tensor, dtype: str) -> gguf.GGMLQuantizationType:
    gguf = import_gguf()
    if tensor.dim() == 1 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32  # type: ignore[no-any-return]
    kind = gguf.GGMLQuantizationType["Q8_0" if dtype == "q4_0" and name in TABLES else dtype.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return gguf.GGMLQuantizationType.F16 if tensor.shape[-1] % block else kind  # type: ignore[no-any-return]
