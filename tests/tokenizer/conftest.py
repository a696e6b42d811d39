"""Small tokenizers of every kind, made once a session."""

import os
from pathlib import Path

import pytest
from tokenizer_samples import CORPUS, TRAINED, spm_model, trained_config

from leveret.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Every kind that needs no file from outside, by name."""
    made = {name: train_tokenizer(trained_config(name), CORPUS) for name in TRAINED}
    folder = tmp_path_factory.mktemp("models")
    model = spm_model(folder / "llama.model", model_type="bpe", normalization_rule_name="identity",
                      remove_extra_whitespaces=False)  # fmt: skip
    config = TokenizerConfig(kind="sentencepiece", source=model.name, bos_token="<s>", eos_token="</s>")
    made["sentencepiece-model"] = load_tokenizer(config, folder)
    return made


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real tokenizer files, where this machine has them."""
    if "LEVERET_DATA" not in os.environ:
        pytest.skip("LEVERET_DATA is not set")
    return Path(os.environ["LEVERET_DATA"]) / "tokenizers"
