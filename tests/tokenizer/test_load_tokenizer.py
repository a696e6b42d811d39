"""Loading what others trained, and the errors of it."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from pydantic import ValidationError
from tokenizer_samples import CORPUS, TRAINED, encode_slowly, spm_model, trained_config, write_ranks
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from leveret.tokenizer import ranks as ranks_module
from leveret.tokenizer.patterns import PATTERNS, PROBE_TEXT

NO_SPECIALS = PROBE_TEXT.replace("<|endoftext|>", "").replace("<|im_start|>", "")
# tiktoken's own patterns, to compare ours with.
TIKTOKEN_PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k_base": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
        r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    ),
}


def test_ranks_file_gives_tiktokens_ids(
    tokenizers: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = write_ranks(tmp_path / "tiny.tiktoken", tokenizers["bpe-cl100k"])
    specials = {"<|endoftext|>": len(ranks) + 1, "<|endofprompt|>": len(ranks) + 5}
    tiny = ranks_module.Encoding(PATTERNS["cl100k"], len(ranks), specials)
    monkeypatch.setitem(ranks_module.ENCODINGS, "cl100k_base", tiny)
    config = TokenizerConfig(
        kind="tiktoken", source="cl100k_base", ranks_file="tiny.tiktoken", eos_token="<|endoftext|>"
    )
    tokenizer = load_tokenizer(config, tmp_path)
    theirs = tiktoken.Encoding(
        "tiny", pat_str=TIKTOKEN_PATTERNS["cl100k_base"], mergeable_ranks=ranks, special_tokens=specials
    )
    assert tokenizer.fast
    assert tokenizer.vocab_size == theirs.n_vocab == len(ranks) + 6
    assert tokenizer.encode(PROBE_TEXT) == theirs.encode_ordinary(PROBE_TEXT)
    assert tokenizer.encode(PROBE_TEXT, special=True) == theirs.encode(PROBE_TEXT, allowed_special="all")
    assert tokenizer.eos_id == specials["<|endoftext|>"]


@pytest.mark.parametrize(("name", "file"), [("gpt2", "r50k_base.tiktoken"), ("cl100k_base", "cl100k_base.tiktoken")])
def test_published_ranks_give_tiktokens_ids(data_folder: Path, tmp_path: Path, name: str, file: str) -> None:
    config = TokenizerConfig(kind="tiktoken", source=name, ranks_file=file, eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(config, data_folder)
    encoding = ranks_module.ENCODINGS[name]
    theirs = tiktoken.Encoding(
        name,
        pat_str=TIKTOKEN_PATTERNS[name],
        mergeable_ranks=ranks_module.read_ranks(data_folder / file),
        special_tokens=dict(encoding.special_tokens),
    )
    assert tokenizer.vocab_size == theirs.n_vocab == {"gpt2": 50_257, "cl100k_base": 100_277}[name]
    assert tokenizer.encode(PROBE_TEXT) == theirs.encode_ordinary(PROBE_TEXT)
    assert encode_slowly(tokenizer, PROBE_TEXT) == theirs.encode_ordinary(PROBE_TEXT)
    tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(NO_SPECIALS)["input_ids"] == tokenizer.encode(NO_SPECIALS)


def test_smollm2_loads_as_transformers_does(data_folder: Path) -> None:
    file = data_folder / "smollm2_tokenizer.json"
    tokenizer = load_tokenizer(TokenizerConfig(kind="huggingface", source=file.name), data_folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(file))
    assert tokenizer.vocab_size == 49_152
    # The file carries a cut at 128 tokens, which must not stay.
    assert len(tokenizer.encode(NO_SPECIALS)) > 128
    assert tokenizer.encode(NO_SPECIALS) == theirs(NO_SPECIALS, truncation=False)["input_ids"]


def test_hugging_face_folder_keeps_its_roles_and_template(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    train_tokenizer(trained_config("bpe-gpt2", template="command"), CORPUS).save(tmp_path / "one")
    loaded = load_tokenizer(TokenizerConfig(kind="huggingface", source="one"), tmp_path)
    assert loaded.eos_id == 2
    assert loaded.chat_template is not None
    changed = load_tokenizer(TokenizerConfig(kind="huggingface", source="one", eos_token="<user>"), tmp_path)
    assert (changed.eos_id, changed.bos_id) == (5, 1)
    assert changed.encode(PROBE_TEXT) == tokenizers["bpe-gpt2"].encode(PROBE_TEXT)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_model_gives_its_own_ids(tmp_path: Path, model_type: str, prefix: bool) -> None:
    path = spm_model(
        tmp_path / "a.model", model_type=model_type, add_dummy_prefix=prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False, required_chars="<0x123456789ABCDEF>s/unk",
    )  # fmt: skip
    tokenizer = load_tokenizer(TokenizerConfig(kind="sentencepiece", source="a.model", unk_token="<unk>"), tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.vocab_size == theirs.vocab_size()
    for text in (PROBE_TEXT, *CORPUS, " a", ""):
        assert tokenizer.encode(text) == theirs.encode(text)


def test_sentencepiece_model_that_cannot_be_given_exactly_is_refused(tmp_path: Path) -> None:
    spm_model(tmp_path / "a.model", model_type="bpe", user_defined_symbols=["<sep>"])
    with pytest.raises(UserError, match="differently from SentencePiece"):
        load_tokenizer(TokenizerConfig(kind="sentencepiece", source="a.model"), tmp_path)


@pytest.mark.parametrize(
    ("fields", "content", "message"),
    [
        ({"kind": "tiktoken", "source": "gpt2", "ranks_file": "none"}, None, "ranks_file .*none cannot be read"),
        ({"kind": "tiktoken", "source": "gpt2", "ranks_file": "file"}, b"not ranks", "not `base64 rank` per line"),
        ({"kind": "tiktoken", "source": "gpt2", "ranks_file": "file"}, b"IQ== 0\n", "1 entries where gpt2 has 50256"),
        ({"kind": "sentencepiece", "source": "none"}, None, "cannot be read"),
        ({"kind": "sentencepiece", "source": "file"}, b"\x0a\xff garbage", "not a SentencePiece .model"),
        ({"kind": "huggingface", "source": "file"}, b"{]", "not JSON"),
        ({"kind": "huggingface", "source": "file"}, b"{}", "not a tokenizer.json"),
    ],
)
def test_bad_sources_are_user_errors(
    tmp_path: Path, fields: dict[str, str], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(TokenizerConfig.model_validate(fields), tmp_path)


def test_failed_download_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match="ranks_file"):
        load_tokenizer(TokenizerConfig(kind="tiktoken", source="gpt2"), tmp_path)


def test_word_piece_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="decoder WordPiece"):
        load_tokenizer(TokenizerConfig(kind="huggingface", source="tokenizer.json"), tmp_path)


@pytest.mark.parametrize("kind", TRAINED)
def test_too_little_text(kind: str) -> None:
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="empty"):
            train_tokenizer(trained_config(kind), nothing)
    small = train_tokenizer(trained_config(kind, vocab_size=4000), CORPUS[:2])
    assert small.vocab_size < 4000
    assert small.decode(small.encode(PROBE_TEXT)) == PROBE_TEXT


def test_more_characters_than_vocabulary_is_a_user_error() -> None:
    config = trained_config("sentencepiece-bpe", vocab_size=270)
    with pytest.raises(UserError, match="SentencePiece cannot train"):
        train_tokenizer(config, CORPUS)


def test_only_the_sample_is_read() -> None:
    config = trained_config("bpe-gpt2", sample_bytes=len(CORPUS[0].encode()) + 10)
    head = train_tokenizer(config, [CORPUS[0], CORPUS[1][:10]])
    assert train_tokenizer(config, CORPUS).content_hash == head.content_hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bpe"}, "vocab_size must be at least 256"),
        ({"kind": "bpe", "vocab_size": 300, "eos_token": "<e>"}, "not in special_tokens"),
        ({"kind": "bpe", "vocab_size": 300, "special_tokens": ["<e>", "<e>"]}, "twice"),
        ({"kind": "bpe", "vocab_size": 300, "special_tokens": ["e"]}, "two or more characters"),
        ({"kind": "bpe", "vocab_size": 300, "source": "x"}, "drop them"),
        ({"kind": "sentencepiece-bpe", "vocab_size": 300}, "needs an unk_token"),
        ({"kind": "tiktoken"}, "needs source"),
        ({"kind": "tiktoken", "source": "o200k_base"}, "not one of gpt2, cl100k_base"),
        ({"kind": "huggingface", "source": "x", "ranks_file": "y"}, "ranks_file belongs to"),
        ({"kind": "huggingface", "source": "x", "vocab_size": 5}, "come with the source"),
    ],
)
def test_config_refuses_what_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(fields)


def test_saved_form_is_plain_json(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizers["bpe-gpt2"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<eos>"
    assert config["clean_up_tokenization_spaces"] is False
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
