"""Loading a tokenizer that others trained, by tiktoken's name, as a SentencePiece .model or from Hugging Face."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from leveret.errors import UserError
from leveret.strangers.files import read_limited
from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.patterns import PROBE_TEXT
from leveret.tokenizer.ranks import ENCODINGS, MOST_BYTES, definition_of, download_ranks, read_ranks
from leveret.tokenizer.template import TEMPLATES, sample_text, template_text
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer, read_json
from leveret.tokenizer.train import roles_of


def load_tokenizer(config: TokenizerConfig, base_dir: Path) -> Tokenizer:
    """Load the tokenizer that `config` names; relative paths start at `base_dir`.

    The roles and the template of `config` win over those that come with the source. Raises UserError when the source
    cannot be read or fetched, or its ids cannot be given exactly.
    """
    assert config.source is not None, "the config checks this"
    if config.kind == "tiktoken":
        return _load_tiktoken(config, base_dir)
    if config.kind == "sentencepiece":
        return _load_sentencepiece(config, base_dir / config.source)
    if config.kind == "huggingface":
        return _load_huggingface(config, base_dir)
    raise UserError(f"tokenizer kind '{config.kind}' is trained, not loaded; train it or change kind")


def _load_tiktoken(config: TokenizerConfig, base_dir: Path) -> Tokenizer:
    name = str(config.source)
    encoding = ENCODINGS[name]
    ranks = read_ranks(base_dir / config.ranks_file) if config.ranks_file else download_ranks(name)
    if len(ranks) != encoding.ranks:
        raise UserError(
            f"ranks_file {config.ranks_file} has {len(ranks)} entries where {name} has {encoding.ranks}; "
            f"give the file of {name}"
        )
    definition = definition_of(ranks, encoding.pattern, encoding.special_tokens)
    return Tokenizer(definition, roles_of(config), template_text(config.template))


def _load_sentencepiece(config: TokenizerConfig, path: Path) -> Tokenizer:
    """Raises UserError where tokenizer.json cannot give SentencePiece's ids; it names the text that shows it."""
    import sentencepiece

    from leveret.tokenizer import spm

    try:
        data = read_limited(path, MOST_BYTES)
    except (OSError, ValueError):
        raise UserError(f"tokenizer.source {path} cannot be read; check the path") from None
    model = spm.read_model(data)
    definition = spm.definition_of(model, raw_spaces=False)
    symbols = [piece for piece, _, kind in model.pieces if kind == spm.USER_DEFINED]
    chats = [sample_text(template.read_text("utf-8")) for template in sorted(TEMPLATES.glob("*.jinja"))]
    texts = [
        *PROBE_TEXT.splitlines(keepends=True),
        PROBE_TEXT,
        *chats,
        *(f"a{symbol}b {symbol} c" for symbol in symbols),
    ]
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text, _, _ in spm.differences(processor, definition, texts):
        raise UserError(
            f"{path} cannot be loaded: tokenizer.json would encode {text[:60]!r} differently from SentencePiece; "
            "use another tokenizer"
        )
    return _checked(Tokenizer(definition, roles_of(config), template_text(config.template)))


def _load_huggingface(config: TokenizerConfig, base_dir: Path) -> Tokenizer:
    source = str(config.source)
    path = base_dir / source
    if path.is_file():
        loaded = Tokenizer(json.dumps(read_json(path)), SpecialRoles())
    else:
        loaded = Tokenizer.load(path if path.is_dir() else _fetch(source))
    wanted = {role: token for role, token in asdict(roles_of(config)).items() if token is not None}
    roles = SpecialRoles(**{**asdict(loaded.roles), **wanted})
    return _checked(Tokenizer(loaded.definition, roles, template_text(config.template) or loaded.chat_template))


def _fetch(name: str) -> Path:
    """The tokenizer files of a model on the hub, through its cache."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it uses

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"tokenizer.source '{name}' is no local path and the hub did not give it ({type(error).__name__}); "
            "give the path of a tokenizer.json"
        ) from None


def _checked(tokenizer: Tokenizer) -> Tokenizer:
    """Refuse a tokenizer that reads the text of a special token as control even when asked for plain text."""
    for text, index in tokenizer.special_tokens.items():
        if index in tokenizer.encode(text):
            raise UserError(f"this tokenizer cannot take {text!r} as plain text; use another tokenizer")
    return tokenizer
