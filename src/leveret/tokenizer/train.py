"""Training a tokenizer on a corpus. The result is always a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leveret.errors import UserError
from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.patterns import PATTERNS, split_and_bytes
from leveret.tokenizer.template import template_text
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer that `config` describes on the first `sample_bytes` of `texts`; same texts, same tokenizer.

    Raises UserError when there is no text, or when `config` is of a kind that is loaded.
    """
    if not config.trained:
        raise UserError(f"tokenizer kind '{config.kind}' is loaded, not trained; drop the training or change kind")
    sample = list(_sample(texts, config.sample_bytes))
    if not any(sample):
        raise UserError("the corpus for training the tokenizer is empty; check the data sources")
    if config.kind == "bpe":
        definition = _train_bpe(config, sample)
    else:
        from leveret.tokenizer.spm import train_sentencepiece

        definition = train_sentencepiece(config, sample)
    return Tokenizer(definition, roles_of(config), template_text(config.template))


def roles_of(config: TokenizerConfig) -> SpecialRoles:
    """The special tokens that `config` names."""
    return SpecialRoles(config.bos_token, config.eos_token, config.pad_token, config.unk_token)


def _sample(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until `limit` bytes are read; the last one is cut."""
    for text in texts:
        data = text.encode("utf-8", "replace")[:limit]
        yield data.decode("utf-8", "ignore")
        limit -= len(data)
        if limit <= 0:
            return


def _train_bpe(config: TokenizerConfig, texts: list[str]) -> str:
    """Byte-level BPE: special tokens, then the 256 bytes, then merges, in id order."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    assert config.vocab_size is not None, "the config checks this"
    backend = Backend(models.BPE())
    split_and_bytes(backend, PATTERNS[config.pattern])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return str(backend.to_str())
