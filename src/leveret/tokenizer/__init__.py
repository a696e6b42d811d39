"""One interface over every tokenizer: train (BPE, SentencePiece), load (tiktoken, SentencePiece, Hugging Face), chat.

config.py -> train.py | load.py -> Tokenizer (tokenizer.py) -> template.render -> ids and what to learn
"""

from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.load import load_tokenizer
from leveret.tokenizer.template import Rendered, render
from leveret.tokenizer.tokenizer import IncrementalDecoder, SpecialRoles, Tokenizer
from leveret.tokenizer.train import train_tokenizer

__all__ = [
    "IncrementalDecoder",
    "Rendered",
    "SpecialRoles",
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
    "render",
    "train_tokenizer",
]
