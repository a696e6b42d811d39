"""What a recipe says about its tokenizer."""

from typing import Literal

from pydantic import Field, model_validator

from leveret.config import Config

TRAINED_KINDS = ("bpe", "sentencepiece-bpe", "sentencepiece-unigram")
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


class TokenizerConfig(Config):
    """How to train a tokenizer (`bpe`, `sentencepiece-bpe`, `sentencepiece-unigram`) or which one to load."""

    kind: Literal["bpe", "sentencepiece-bpe", "sentencepiece-unigram", "tiktoken", "sentencepiece", "huggingface"]
    """The first three are trained on the corpus; the last three are loaded from `source`."""
    vocab_size: int | None = Field(default=None, gt=0)
    """Trained kinds: entries wanted, special tokens included. A small corpus may give fewer."""
    source: str | None = None
    """tiktoken: `gpt2` or `cl100k_base`. sentencepiece: path of a .model. huggingface: a tokenizer.json, its
    directory, or a name on the hub."""
    ranks_file: str | None = None
    """tiktoken: a ranks file (`base64 rank` per line) to read in place of tiktoken's own download or cache."""
    pattern: Literal["gpt2", "cl100k", "words"] = "gpt2"
    """bpe: how text is cut before merging. `words` never joins a word with the punctuation
    beside it and makes every digit a token of its own, so that parts of a path or a number can be copied one by one."""
    special_tokens: list[str] = []
    """Trained kinds: the special tokens, in id order from 0."""
    bos_token: str | None = None
    """The token that starts a document."""
    eos_token: str | None = None
    """The token that ends a document or a turn."""
    pad_token: str | None = None
    """The token that fills up rows; never learnt from."""
    unk_token: str | None = None
    """The token for what has no other; sentencepiece-* need one to exist, though bytes take its place."""
    template: str | None = None
    """Name of a chat template: command, parchment, chatml, lines, llama3 or smallm."""
    sample_bytes: int = Field(default=100_000_000, gt=0)
    """Trained kinds: how much text is read for training, in bytes of UTF-8."""

    @property
    def trained(self) -> bool:
        """True for the kinds that are trained on the corpus."""
        return self.kind in TRAINED_KINDS

    @model_validator(mode="after")
    def _check_combination(self) -> "TokenizerConfig":
        if self.trained:
            self._check_trained()
        else:
            self._check_loaded()
        return self

    def _check_trained(self) -> None:
        if self.source or self.ranks_file:
            raise ValueError(f"source and ranks_file have no use for kind '{self.kind}', which is trained; drop them")
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError("special_tokens lists a token twice")
        # One character could also be made by the model itself, so that plain text would turn into control.
        if short := [token for token in self.special_tokens if len(token) < 2 or token != token.strip()]:
            raise ValueError(f"special token {short[0]!r} needs two or more characters and no space around it")
        for role in ROLES:
            if (token := getattr(self, role)) is not None and token not in self.special_tokens:
                raise ValueError(f"{role} {token!r} is not in special_tokens; add it there")
        if self.kind != "bpe" and self.unk_token is None:
            raise ValueError(f"kind '{self.kind}' needs an unk_token among special_tokens")
        smallest = 256 + len(self.special_tokens)
        if self.vocab_size is None or self.vocab_size < smallest:
            raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and the special tokens)")

    def _check_loaded(self) -> None:
        if not self.source:
            raise ValueError(f"kind '{self.kind}' needs source")
        if self.kind == "tiktoken" and self.source not in ("gpt2", "cl100k_base"):
            raise ValueError(f"source '{self.source}' is not one of gpt2, cl100k_base")
        if self.ranks_file and self.kind != "tiktoken":
            raise ValueError(f"ranks_file belongs to kind 'tiktoken', not '{self.kind}'")
        if self.special_tokens or self.vocab_size:
            raise ValueError(f"special_tokens and vocab_size come with the source for kind '{self.kind}'; drop them")
