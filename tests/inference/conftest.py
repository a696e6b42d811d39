import pytest

from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes with an end token: id 0 ends, id 1 + i is the i-th byte of the alphabet."""
    config = TokenizerConfig(kind="bpe", vocab_size=257, special_tokens=["<eos>"], eos_token="<eos>")
    return train_tokenizer(config, ["a"])
