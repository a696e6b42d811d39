"""SentencePiece: its trainer, its .model files, and their translation to a tokenizer.json with the same ids.

texts -> trainer -> .model -> read_model -> definition -> differences from SentencePiece itself: none
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from leveret.errors import UserError
from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.patterns import PROBE_TEXT
from leveret.tokenizer.pieces import BYTE_PIECE

SPACE = "\u2581"  # how SentencePiece writes a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # piece types that we read
UNIGRAM, BPE = 1, 2  # model types that we read
# SentencePiece skips training lines that hold its own marks: tab, U+2585 and its space. Line ends stay bytes.
LINE_BREAKS = re.compile("[\t\n\r\0\u2585\u2581]+")
# No piece that we train goes across these cuts, so they change no id; short pieces are cached and merge fast.
CUT = re.compile(r"\n+| *[^ \n]+| +")
PROOF_CHARACTERS = 1_000_000
LONGEST_LINE = 4000  # characters
# Below what spelling it out costs, so that the text `<0x41>` is spelt and no byte token.
NEVER_SCORE = -10_000.0


@dataclass(frozen=True)
class SpmModel:
    """What a .model file says, as far as ids depend on it."""

    pieces: list[tuple[str, float, int]]  # text, score, type; by id
    model_type: int
    byte_fallback: bool
    unk_id: int
    charsmap: bytes  # normalisation table; empty for none
    dummy_prefix: bool
    collapses_spaces: bool


def read_model(data: bytes) -> SpmModel:
    """Read a .model file (protocol buffers; field numbers from sentencepiece_model.proto).

    Raises UserError for what is no such file.
    """
    try:
        fields = list(_fields(data))
        trainer: dict[int, Any] = dict(_fields(next(value for number, value in fields if number == 2)))
        normalizer: dict[int, Any] = dict(_fields(next(value for number, value in fields if number == 3)))
        pieces = [_piece(dict(_fields(value))) for number, value in fields if number == 1]
    except (ValueError, IndexError, KeyError, StopIteration, struct.error, TypeError):
        raise UserError("not a SentencePiece .model file; check tokenizer.source") from None
    return SpmModel(
        pieces=pieces,
        model_type=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=trainer.get(40, 0),
        charsmap=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, 1)),
        collapses_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protocol-buffer message: int, bytes, or float."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            length = varint()
            if position + length > len(data):
                raise ValueError("cut short")
            yield number, data[position : position + length]
            position += length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield number, struct.unpack("<d" if wire == 1 else "<f", data[position : position + size])[0]
            position += size
        else:
            raise ValueError("unknown wire type")


def _piece(fields: dict[int, Any]) -> tuple[str, float, int]:
    return fields[1].decode(), fields.get(2, 0.0), fields.get(3, NORMAL)


def train_sentencepiece(config: TokenizerConfig, texts: Sequence[str]) -> str:
    """Train on `texts` and return the tokenizer.json, whose ids are checked against SentencePiece's.

    Where two cuts are equally good, tokenizer.json decides.
    """
    import sentencepiece

    data = _train_model(config, texts)
    definition = definition_of(read_model(data), raw_spaces=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    # Word by word: over a long text SentencePiece's single-precision sums round, and near-ties fall either way.
    words = sorted(set(CUT.findall("\n".join(texts)[:PROOF_CHARACTERS].replace(SPACE, ""))))
    for text, ours, theirs in differences(processor, definition, [PROBE_TEXT, *words]):
        if not _is_tie(processor, ours, theirs):
            raise AssertionError(f"tokenizer.json and SentencePiece disagree on {text!r}: {ours} and {theirs}")
    return definition


def _train_model(config: TokenizerConfig, texts: Sequence[str]) -> bytes:
    import sentencepiece

    specials = config.special_tokens
    roles = {"pad": config.pad_token, "bos": config.bos_token, "eos": config.eos_token, "unk": config.unk_token}
    named: dict[str, Any] = {
        key: value
        for role, token in roles.items()
        for key, value in (
            (f"{role}_id", -1 if token is None else specials.index(token)),
            (f"{role}_piece", token or f"<no {role}>"),
        )
    }
    # Every special and byte piece must be spellable as text, so their characters are always in the vocabulary.
    required = "".join(sorted({*"<0x123456789ABCDEF>", *"".join(specials)}))
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=written,
            model_type=config.kind.removeprefix("sentencepiece-"),
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            control_symbols=[token for token in specials if token not in roles.values()],
            required_chars=required,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * LONGEST_LINE,
            train_extremely_large_corpus=config.sample_bytes > 1_000_000_000,
            num_threads=4,  # sums depend on it, so it is the same on every machine
            minloglevel=2,
            **named,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip() or str(error)
        raise UserError(
            f"SentencePiece cannot train on this corpus ({reason}); change vocab_size or add text"
        ) from None
    return written.getvalue()


def _lines(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for line in LINE_BREAKS.split(text):
            for start in range(0, len(line), LONGEST_LINE):
                yield line[start : start + LONGEST_LINE]


def definition_of(model: SpmModel, *, raw_spaces: bool) -> str:
    """The tokenizer.json of a model.

    `raw_spaces`: for models that we trained; spaces stay spaces inside the tokenizer, so that U+2581 in text is
    itself. Otherwise U+2581 reads as a space, as in SentencePiece. Raises UserError for word and character models.
    """
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pieces = model.pieces
    if raw_spaces:
        pieces = [(p.replace(SPACE, " ") if t == NORMAL else p, score, t) for p, score, t in pieces]
    backend = Backend(_backend_model(model, pieces))
    tail = [decoders.ByteFallback(), decoders.Fuse()]
    if raw_spaces:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(CUT.pattern), behavior="isolated")
        backend.decoder = decoders.Sequence(tail)
    else:
        steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
        if model.collapses_spaces:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(f"[ {SPACE}]+"), " ")]
        steps += [normalizers.Prepend(SPACE)] if model.dummy_prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *tail, *strip])
    backend.add_special_tokens([AddedToken(p, normalized=False) for p, _, t in pieces if t in (UNKNOWN, CONTROL)])
    backend.add_tokens([AddedToken(p, normalized=False) for p, _, t in pieces if t == USER_DEFINED])
    return str(backend.to_str())


def _backend_model(model: SpmModel, pieces: list[tuple[str, float, int]]) -> Any:
    from tokenizers import models

    if model.model_type == UNIGRAM:
        # Unigram finds every entry in the text; a score this low keeps the byte pieces out of the best path.
        scores = [(p, NEVER_SCORE if BYTE_PIECE.fullmatch(p) else score) for p, score, _ in pieces]
        return models.Unigram(scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    if model.model_type != BPE:
        raise UserError("SentencePiece word and character models are not supported; use a bpe or unigram one")
    return models.BPE(
        vocab={piece: index for index, (piece, _, _) in enumerate(pieces)},
        merges=_merges(pieces),
        unk_token=pieces[model.unk_id][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every pair of pieces that spells a third, best score first: SentencePiece joins whatever makes a known piece."""
    normal = {piece: (-score, index) for index, (piece, score, kind) in enumerate(pieces) if kind == NORMAL}
    pairs = []
    for piece in sorted((piece for piece in normal if len(piece) > 1), key=lambda piece: normal[piece]):
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs += [(left, right) for left, right in splits if left in normal and right in normal]
    return pairs


def differences(processor: Any, definition: str, texts: Iterable[str]) -> Iterator[tuple[str, list[int], list[int]]]:
    """The texts that the definition and SentencePiece encode differently: (text, our ids, their ids)."""
    from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

    tokenizer = Tokenizer(definition, SpecialRoles())
    for text in texts:
        ours, theirs = tokenizer.encode(text), processor.encode(text)
        if ours != theirs:
            yield text, ours, theirs


def _is_tie(processor: Any, ours: list[int], theirs: list[int]) -> bool:
    """Whether two ways to cut a text are equally good (1+111 and 111+1, say), so that rounding alone decides."""
    return math.isclose(*(sum(map(processor.get_score, ids)) for ids in (ours, theirs)), rel_tol=1e-6)
