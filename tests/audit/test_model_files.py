"""A model that comes as files alone: the mistakes of its tokenizer, and of the ids that other programs go by."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ENGLISH, made_tokenizer, write_run
from typer.testing import CliRunner

from leveret.cli.app import app
from leveret.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_run(folder / "run", made_tokenizer("bpe", ENGLISH), "finetune")
    done = CliRunner().invoke(app, ["export", "hf", str(folder / "run"), str(folder / "out")])
    assert done.exit_code == 0, done.output
    return folder / "out"


def audited(folder: Path, exit_code: int) -> list[str]:
    done = CliRunner().invoke(app, ["audit", str(folder)])
    assert done.exit_code == exit_code, done.output
    return done.stdout.splitlines()


def spoilt(sound: Path, folder: Path, file: str, **changes: Any) -> Path:
    """The folder's files but for keys of one."""
    folder.mkdir()
    for path in sound.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(known | changes))
    return folder


def test_what_we_export_passes(sound: Path) -> None:
    (line,) = audited(sound, 0)
    assert line.split()[:2] == ["tokenizer", "passed"]
    assert line.endswith("the chat template, the ids in config.json and generation_config.json")


def test_a_padding_id_that_is_a_word(sound: Path, tmp_path: Path) -> None:
    """83285 in the card of parchment-166m, where <|endofprompt|> was 100276."""
    tokenizer = Tokenizer.load(sound)
    word = next(i for i in range(300, 640) if tokenizer.token_bytes(i).isalpha())
    for number, file in enumerate(("config.json", "generation_config.json")):
        _, found = audited(spoilt(sound, tmp_path / str(number), file, pad_token_id=word), 1)
        said = tokenizer.token_bytes(word).decode()
        assert f"error: {file}: pad_token_id: {word} is {said!r}, an ordinary word, which stands in texts" in found


def test_ids_that_are_unknown_not_there_or_others_than_the_tokenizers(sound: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(sound)
    changes = {
        "bos_token_id": tokenizer.unk_id,
        "eos_token_id": [tokenizer.special_tokens["<bos>"]],
        "pad_token_id": 9999,
    }
    _, *found = audited(spoilt(sound, tmp_path / "out", "generation_config.json", **changes), 1)
    assert [line.split(";")[0].strip() for line in found] == [
        f"error: generation_config.json: bos_token_id: {tokenizer.unk_id} is the unknown token",
        "warning: generation_config.json: eos_token_id: '<bos>', where the tokenizer says '<eos>'",
        f"error: generation_config.json: pad_token_id: the tokenizer has no token 9999, only {tokenizer.vocab_size}",
    ]
    several = [tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"]]
    audited(spoilt(sound, tmp_path / "several", "generation_config.json", eos_token_id=several), 0)


def test_roles_and_marks_of_the_template_that_are_unknown(sound: Path, tmp_path: Path) -> None:
    roles = spoilt(sound, tmp_path / "roles", "tokenizer_config.json", eos_token="<unk>")
    assert any("tokenizer.eos_token: '<unk>' is the unknown token" in line for line in audited(roles, 1))
    nowhere = spoilt(sound, tmp_path / "nowhere", "tokenizer_config.json", eos_token="[EOS]")
    assert "eos_token '[EOS]' is not in the tokenizer's vocabulary" in str(
        CliRunner().invoke(app, ["audit", str(nowhere)]).exception
    )
