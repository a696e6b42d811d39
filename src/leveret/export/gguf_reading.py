"""A GGUF file of ours, read back: all of it but the weights, which are llama.cpp's business."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.errors import UserError
from leveret.export.gguf import FILE_TYPES, FORMAT_VERSION, OURS, import_gguf
from leveret.export.gguf_tokenizer import WHOLE
from leveret.export.source import stand_in
from leveret.inference.llamacpp import GgufFile
from leveret.model.config import ModelConfig
from leveret.recipe import Recipe
from leveret.strangers.documents import parse_json
from leveret.strangers.gguf import checked_gguf
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

FILE_TYPE = "general.file_type"


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file's model, as far as it is to be known to ask it."""

    file: GgufFile
    tokenizer: Tokenizer
    recipe: Recipe
    stage: str
    step: int
    weights_sha256: str
    chats: bool


def read_gguf(path: Path) -> GgufModel:
    """Reads what `export_gguf` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it is none of ours.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; `leveret export gguf RUN {path}` writes one")
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(checked_gguf(path))
        fields = {key: reader.fields[key].contents() for key in (OURS, WHOLE, FILE_TYPE) if key in reader.fields}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is no whole GGUF file ({error})") from None
    if OURS not in fields or WHOLE not in fields:
        raise UserError(
            f"{path} was not written by `leveret export gguf`, and its tokenizer cannot be read back; ask it with "
            "llama.cpp itself, or import the model that it was made from with `leveret import hf`"
        )
    return _model(path, fields)


def _model(path: Path, fields: dict[str, Any]) -> GgufModel:
    gguf = import_gguf()
    try:
        ours = parse_json(fields[OURS])
        if ours["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path} was written by another version of Leveret; write it again")
        tokenizer = Tokenizer(fields[WHOLE], SpecialRoles(**ours["roles"]), ours["chat_template"])
        config = ModelConfig.model_validate(ours["model"])
        known = dict(ours["recipe"])
        recipe = stand_in(known.pop("name"), known.pop("description"), config, tokenizer, **known)
        names = {gguf.LlamaFileType[theirs]: name for name, theirs in FILE_TYPES.items()}
        dtype = names[gguf.LlamaFileType(fields[FILE_TYPE])]
        chats = bool(ours.get("chats", ours["stage"] != "pretrain"))  # files of before do not say it
        stage, step, digest = str(ours["stage"]), int(ours["step"]), str(ours["weights_sha256"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); write it again") from None
    number = 2 * config.num_hidden_layers * config.kv_heads * config.head_width
    file = GgufFile(path, config.max_position_embeddings, dtype, number * (4 if dtype == "f32" else 2))
    return GgufModel(file, tokenizer, recipe, stage, step, digest, chats)
