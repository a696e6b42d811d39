"""How text is cut into pieces before byte-level BPE, and a text that shows whether two tokenizers agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Both engines, Oniguruma in tokenizers and fancy-regex in tiktoken, read these with the same meaning.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "words": r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]|\s",
}

# Emoji with joiners and skin tones, scripts written right to left and without spaces, combining marks, byte noise,
# every line ending, runs of white space, very long words, contractions, text that looks like special tokens.
PROBE_TEXT = (
    "Hello, world! It's they'LL we've I'm don't 'S 'ſ 12345 3.14 x1y2\n"
    "👩‍👩‍👧‍👦 👍🏽 🇪🇺 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 \U0001f9ff\n"
    "中文字符測試，混合English和中文。日本語テスト ｶﾀｶﾅ 한국어 ไทย हिन्दी தமிழ்\n"
    "العربية مع تشكيل: اَلْعَرَبِيَّةُ \u202bעברית\u202c ۱۲۳ ٣٤٥\n"
    "e\u0301 a\u0308\u0304 Z\u0351\u036b\u0343 n\u0303 \u1e9b\u0323 ﬁ Å Å ½ Ⅷ ² Ω\n"
    "\r\n\r\nCR\rLF\r\n\ttab\t\ttwo\x0bvt\x0cff\x85nel\u2028ls\u2029ps\u00a0nbsp\u3000ideo\u200bzw\ufeffbom   three\n"
    "    indent\n        more   \n   \n\x00\x01\x1f\x7f\x80\x9f\ufffd\ufffe\U0010ffff\ue000 Ã© â‚¬ ÿþ\n"
    f"{'pneumono' * 40} {'ab' * 300} {'=' * 200} {'哈' * 100} {'9' * 100}\n"
    "<|endoftext|> <|im_start|>user <s> </s> <pad> <unk> <0x41> <0x0A> <system> [INST] `$HOME/a.txt` a@b.c {x^y}~|\\\n"
    "if (x != y) { return a[i] ?? b->c::d; }  # é\t\n trailing  "
)


def byte_characters() -> list[str]:
    """The character that stands for each byte 0..255 in byte-level vocabularies (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 stands for itself; the others, in order, are the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def split_and_bytes(backend: Backend, pattern: str) -> None:
    """Make a byte-level tokenizer of `backend`: cut by the regular expression, then bytes as characters."""
    from tokenizers import Regex, decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
