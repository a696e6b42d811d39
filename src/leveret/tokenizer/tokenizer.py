"""The tokenizer of a run: tokenizer.json, the roles of its special tokens, and a chat template."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leveret.errors import UserError
from leveret.strangers.documents import parse_json
from leveret.strangers.documents import read_json as read_limited_json
from leveret.strangers.files import read_limited
from leveret.tokenizer.fast import LONGEST_TEXT, tiktoken_twin
from leveret.tokenizer.pieces import piece_bytes
from leveret.tokenizer.rendering import MOST_TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

FORMAT_VERSION = 1

After = Literal["nothing", "token", "text"]
"""What stands in front of a text that is encoded: some tokenizers put a space first, unless they go on."""


@dataclass(frozen=True)
class SpecialRoles:
    """The texts of the special tokens that have a role."""

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None


class Tokenizer:
    """Text to ids and back. Immutable; made by `train_tokenizer`, `load_tokenizer` or `Tokenizer.load`."""

    def __init__(self, definition: str, roles: SpecialRoles, chat_template: str | None = None) -> None:
        """`definition` is the text of a tokenizer.json. Raises UserError for one whose text cannot be written back."""
        from tokenizers import Tokenizer as Backend

        try:
            given: dict[str, Any] = parse_json(definition, once=True)
            if not isinstance(given, dict) or not isinstance(given.get("added_tokens"), list):
                raise ValueError("it holds no mapping with added_tokens")
        except ValueError as error:
            raise UserError(f"not a tokenizer.json ({error}); check the file") from None
        # Some files carry the cutting and padding of their last use; ids must not depend on it.
        self._definition: dict[str, Any] = {**given, "truncation": None, "padding": None}
        definition = self.definition
        try:
            self._marked = Backend.from_str(definition)
        except BaseException as error:  # the library raises no narrower class, and its panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(f"not a tokenizer.json ({error}); check the file") from None
        if not _whole(self._definition):
            self._definition = json.loads(self._marked.to_str())
            definition = self.definition
        plain = _unreachable_specials(self._definition)
        self._plain = Backend.from_str(json.dumps(plain, ensure_ascii=False) if plain else definition)
        self._plain.encode_special_tokens = True
        self._going_on, self._spaces_first_only = _without_first_space(plain or self._definition)
        self.roles = roles
        self.chat_template = chat_template
        self.special_tokens: dict[str, int] = {
            token["content"]: token["id"] for token in self._definition["added_tokens"] if token["special"]
        }
        self._special_ids = frozenset(self.special_tokens.values())
        special = [token for token in self._definition["added_tokens"] if token["special"]]
        self.eat_left = frozenset(token["content"] for token in special if token["lstrip"])
        """Special tokens that take the white space in front of them with them."""
        self.eat_right = frozenset(token["content"] for token in special if token["rstrip"])
        """Those that take the white space behind them."""
        for role, token in asdict(roles).items():
            if token is not None and self._marked.token_to_id(token) is None:
                raise UserError(f"{role} {token!r} is not in the tokenizer's vocabulary; choose one that is")
        self._pieces, self._drops_first_space = piece_bytes(self._definition)
        self._twin = tiktoken_twin(self._definition, self._plain)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels to worker processes."""
        return Tokenizer, (self.definition, self.roles, self.chat_template)

    @property
    def definition(self) -> str:
        """The text of tokenizer.json."""
        return json.dumps(self._definition, ensure_ascii=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the highest."""
        return len(self._pieces)

    @property
    def fast(self) -> bool:
        """Whether plain text is encoded through tiktoken, with the same ids."""
        return self._twin is not None

    @property
    def bos_id(self) -> int | None:
        return self._role_id(self.roles.bos_token)

    @property
    def eos_id(self) -> int | None:
        return self._role_id(self.roles.eos_token)

    @property
    def pad_id(self) -> int | None:
        return self._role_id(self.roles.pad_token)

    @property
    def unk_id(self) -> int | None:
        return self._role_id(self.roles.unk_token)

    def _role_id(self, token: str | None) -> int | None:
        return None if token is None else self._marked.token_to_id(token)

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what decides ids and prompts: tokenizer.json, the roles, the chat template."""
        whole = [self._definition, asdict(self.roles), self.chat_template]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, *, special: bool = False, after: After = "nothing") -> list[int]:
        """Ids of `text`; nothing is added. `special=True` reads the text of special tokens as control ids.

        `after`: what stands in front of it, for plain text that goes on. Lone surrogates, which no encoding can write,
        become U+FFFD.
        """
        if self._twin is not None and not special and len(text) <= LONGEST_TEXT:
            return self._twin.encode_ordinary(text)
        goes_on = after == "text" or (after == "token" and self._spaces_first_only)
        backend = self._marked if special else (goes_on and self._going_on) or self._plain
        ids: list[int] = backend.encode(_writable(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. `skip_special=False` writes special tokens too."""
        decoder = IncrementalDecoder(self, skip_special=skip_special)
        data = b"".join(decoder.bytes_of(index) for index in ids)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """The bytes that token `index` stands for (a special token: its text). IndexError beyond the vocabulary."""
        if index < 0:
            raise IndexError(f"token id {index} is negative")
        return self._pieces[index]

    def save(self, directory: Path, *, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which transformers' AutoTokenizer gives the same ids.

        `model_max_length`: the model's context in tokens.
        """
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{role: token for role, token in asdict(self.roles).items() if token is not None},
        }
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        _write_json(directory / "tokenizer.json", self._definition)
        _write_json(directory / "tokenizer_config.json", config)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read what `save` (or transformers) wrote. Raises UserError where a file is missing or unreadable."""
        definition = read_json(directory / "tokenizer.json")
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        template_path = directory / "chat_template.jinja"
        template = _read_template(template_path) if template_path.exists() else config.get("chat_template")
        if template is not None and not isinstance(template, str):
            raise UserError(f"{config_path}: chat_template is no text; keep the one that is meant in {template_path}")
        roles = {role: _token_text(config.get(role)) for role in SpecialRoles.__dataclass_fields__}
        return cls(json.dumps(definition, ensure_ascii=False), SpecialRoles(**roles), template)


class IncrementalDecoder:
    """Decodes ids one at a time for streaming; never hands out half a character.

    What `push` and `flush` return, joined, equals `Tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special_ids if skip_special else frozenset()
        self._at_start = tokenizer._drops_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The text that token `index` completes, possibly none yet."""
        return self._utf8.decode(self.bytes_of(index))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character whose bytes never all came."""
        return self._utf8.decode(b"", final=True)

    def bytes_of(self, index: int) -> bytes:
        """The bytes of the next token: none for a skipped one; the space that SentencePiece puts first is dropped."""
        if index in self._skipped:
            return b""
        data = self._tokenizer.token_bytes(index)
        if self._at_start and data:
            self._at_start = False
            return data.removeprefix(b" ")
        return data


PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
"""Of a tokenizer.json, and where each has its steps if it is a sequence."""


def _whole(definition: dict[str, Any]) -> bool:
    """Whether all that is read here is there, under its type. Older files (GPT-2's own) leave some of it out, which the
    library fills in."""
    if "type" not in definition["model"]:
        return False
    for name, steps in PARTS.items():
        part = definition.get(name, {})
        inner = part.get(steps, []) if isinstance(part, dict) else [part]
        if part is not None and not all(isinstance(step, dict) and "type" in step for step in [part, *inner]):
            return False
    return True


def _unreachable_specials(definition: dict[str, Any]) -> dict[str, Any] | None:
    """A Unigram definition whose special tokens no text can spell, or None where merges keep them out anyway.

    Unigram looks every entry up in the text, special or not, so these are renamed to what no piece of text can be:
    a space inside, where texts are cut at spaces or have them replaced. Byte pieces keep their names, by which
    they are looked up.
    """
    model = definition["model"]
    if model["type"] != "Unigram":
        return None
    specials = {token["content"] for token in definition["added_tokens"] if token["special"]}
    vocab = [[f"a {piece}" if piece in specials else piece, score] for piece, score in model["vocab"]]
    added = [token for token in definition["added_tokens"] if not token["special"]]
    return {**definition, "model": {**model, "vocab": vocab}, "added_tokens": added}


def _without_first_space(definition: dict[str, Any]) -> tuple[Backend | None, bool]:
    """The tokenizer that puts no space first, if this one does; and whether it does so at the start of all only, not
    after each special token."""
    from tokenizers import Tokenizer as Backend

    changed = json.loads(json.dumps(definition))
    first_only = False

    def changes(step: dict[str, Any] | None) -> dict[str, Any] | None:
        nonlocal first_only
        if step is None or step["type"] == "Prepend":
            return None
        for key in ("normalizers", "pretokenizers"):
            if key in step:
                step[key] = [kept for each in step[key] if (kept := changes(each)) is not None]
        if step["type"] == "Metaspace":
            first_only = first_only or step.get("prepend_scheme") == "first"
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        return step

    for part in ("normalizer", "pre_tokenizer"):
        changed[part] = changes(changed.get(part))
    if changed == definition:
        return None, False
    backend = Backend.from_str(json.dumps(changed, ensure_ascii=False))
    backend.encode_special_tokens = True
    return backend, first_only


def _writable(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced, as tiktoken does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _token_text(token: str | dict[str, Any] | None) -> str | None:
    """The text of a token in tokenizer_config.json, which may be a string or an object with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _read_template(path: Path) -> str:
    try:
        return read_limited(path, MOST_TEMPLATE).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = read_limited_json(path)
    except FileNotFoundError:
        raise UserError(f"no tokenizer at {path.parent}: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}); write the tokenizer again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping; write the tokenizer again")
    return data


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
