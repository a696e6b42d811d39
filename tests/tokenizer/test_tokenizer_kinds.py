"""What every kind of tokenizer promises: round trips, transformers' ids, text that stays text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import CORPUS, SPECIALS, TRAINED, encode_slowly, trained_config
from transformers import AutoTokenizer

from leveret.tokenizer import IncrementalDecoder, Tokenizer, train_tokenizer
from leveret.tokenizer.patterns import PROBE_TEXT

KINDS = [*TRAINED, "sentencepiece-model"]
# Without the text of special tokens, which transformers reads as control.
PLAIN_TEXT = PROBE_TEXT
for _token in [*SPECIALS, "<s>", "</s>"]:
    PLAIN_TEXT = PLAIN_TEXT.replace(_token, "")
SLICES = st.sampled_from([PROBE_TEXT[i : i + 12] for i in range(0, len(PROBE_TEXT), 12)])
TEXTS = st.lists(st.one_of(st.text(), SLICES, st.sampled_from([*SPECIALS, "\u2581", "<0x41>"]))).map("".join)


@pytest.mark.parametrize("kind", TRAINED)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_round_trip(tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_round_trip_of_a_loaded_model_but_for_its_space_mark(tokenizers: dict[str, Tokenizer], text: str) -> None:
    text = text.replace("\u2581", "")
    tokenizer = tokenizers["sentencepiece-model"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streaming_equals_decoding(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer = tokenizers[kind]
    arbitrary = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40)
    ids = data.draw(st.one_of(arbitrary, SLICES.map(tokenizer.encode)))
    decoder = IncrementalDecoder(tokenizer, skip_special=skip)
    parts = [*map(decoder.push, ids), decoder.flush()]
    assert "".join(parts) == tokenizer.decode(ids, skip_special=skip)


def test_streaming_never_hands_out_half_a_character(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe-gpt2"]
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push(index) for index in tokenizer.encode("x🧿y")]
    assert parts[0] == "x"
    assert "".join(parts) == "x🧿y"
    assert not any("\ufffd" in part for part in parts)
    cut = IncrementalDecoder(tokenizer)
    assert [cut.push(tokenizer.encode("🧿")[0]), cut.flush()] == ["", "\ufffd"]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path, model_max_length=512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (PLAIN_TEXT, *PLAIN_TEXT.splitlines(), " two  spaces ", ""):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
    marked = "a <bos> b<eos>" if kind in TRAINED else "a <s> b</s>"
    assert theirs(marked)["input_ids"] == tokenizer.encode(marked, special=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (tokenizer.pad_id, tokenizer.unk_id)
    assert theirs.model_max_length == 512
    assert len(theirs) == tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_nothing(tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.content_hash == tokenizer.content_hash
    assert again.encode(PROBE_TEXT) == tokenizer.encode(PROBE_TEXT)
    assert again.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_special_text_is_text_unless_asked(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    for token, index in tokenizer.special_tokens.items():
        text = f"a{token}b {token}"
        plain, marked = tokenizer.encode(text), tokenizer.encode(text, special=True)
        assert not set(plain) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(plain) == text
        assert marked.count(index) == 2
        assert token not in tokenizer.decode(marked)
        assert tokenizer.decode(marked, skip_special=False).count(token) == 2


@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_deterministic_and_the_hash_says_what_changed(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    same = train_tokenizer(trained_config(kind), CORPUS)
    assert same.content_hash == tokenizers[kind].content_hash
    changes = ({"special_tokens": [*SPECIALS, "<more>"]}, {"eos_token": "<user>"}, {"template": "command"})
    hashes = {train_tokenizer(trained_config(kind, **change), CORPUS).content_hash for change in changes}
    assert len(hashes | {same.content_hash}) == 4


@pytest.mark.parametrize("kind", TRAINED)
def test_special_tokens_have_the_ids_asked_for(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.special_tokens == {token: index for index, token in enumerate(SPECIALS)}
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    # What the published TinyLLM tokenizer could not write.
    symbols = "< > @ \\ ^ { | } ~\n\t  "
    ids = tokenizer.encode(symbols)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == symbols


def test_values_are_cut_the_same_beside_any_mark(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe-words"]
    value = tokenizer.encode("report42.log")
    for before, after in (("'", "'"), ("/", "/"), ("\n", ""), ("=", ";")):
        whole = tokenizer.encode(f"{before}report42.log{after}")
        assert whole == tokenizer.encode(before) + value + tokenizer.encode(after)
    after_a_space = tokenizer.encode(" report42.log")  # only the first word knows of the space
    assert tokenizer.decode(after_a_space[-len(tokenizer.encode("42.log")) :]) == "42.log"
    digits = tokenizer.encode("2026")
    assert len(digits) == 4
    assert len(tokenizer.encode("  ..")) == 4


def test_fast_path_is_used_and_agrees(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("bpe-gpt2", "bpe-cl100k", "bpe-words"):
        tokenizer = tokenizers[kind]
        assert tokenizer.fast
        text = PROBE_TEXT + "".join(map(chr, range(0x20, 0x3000)))
        assert tokenizer.encode(text) == encode_slowly(tokenizer, text)
    assert not tokenizers["sentencepiece-bpe"].fast


def test_long_runs_of_spaces_and_lone_surrogates_are_read(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe-gpt2"]
    spaces = " " * 1_200_000 + "a"
    assert tokenizer.decode(tokenizer.encode(spaces)) == spaces
    for kind in KINDS:
        assert tokenizers[kind].decode(tokenizers[kind].encode("a\ud800b")) == "a\ufffdb"
        assert tokenizers[kind].decode(tokenizers[kind].encode("a\ud83d\ude00b")) == "a😀b"
