"""The text and settings that the tests' small tokenizers are made from."""

import base64
import io
from pathlib import Path

import tokenizers

from leveret.tokenizer import Tokenizer, TokenizerConfig

SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>", "<instruction>", "<command>"]
ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
CORPUS = [
    "List all files in the folder that are older than 30 days and larger than 10 MB.",
    "find /var/log -name '*.log' -mtime +30 -size +10M -exec rm {} \\;",
    "The tokenizer reads text and writes numbers; the model reads numbers and writes numbers.",
    "Een haas heet leveret als hij jong is. Ein junger Hase. Un levraut. 野兔 和 小兔子。 أرنب صغير",
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return [a.b for a in x]  # é ü ñ 👍🏽\n",
] * 6

TRAINED = {
    "bpe-gpt2": {"kind": "bpe", "pattern": "gpt2"},
    "bpe-cl100k": {"kind": "bpe", "pattern": "cl100k"},
    "bpe-words": {"kind": "bpe", "pattern": "words"},
    "sentencepiece-bpe": {"kind": "sentencepiece-bpe"},
    "sentencepiece-unigram": {"kind": "sentencepiece-unigram"},
}


def trained_config(name: str, **changes: object) -> TokenizerConfig:
    fields = {"vocab_size": 420, "special_tokens": SPECIALS, **ROLES, **TRAINED[name], **changes}
    return TokenizerConfig.model_validate(fields)


def spm_model(path: Path, **options: object) -> Path:
    """Train a .model as its users do, without our settings."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.splitlines()]),
        model_writer=written,
        **{"vocab_size": 420, "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2, **options},
    )
    path.write_bytes(written.getvalue())
    return path


def encode_slowly(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text through tokenizers itself, never through tiktoken."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.definition)
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


def write_ranks(path: Path, tokenizer: Tokenizer) -> dict[bytes, int]:
    """A ranks file of the ordinary tokens of a trained byte-level tokenizer, counted from 0."""
    first = len(tokenizer.special_tokens)
    ranks = {tokenizer.token_bytes(i): i - first for i in range(first, tokenizer.vocab_size)}
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    path.write_text("\n".join(lines) + "\n")
    return ranks
