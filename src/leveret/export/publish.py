"""A model on the Hugging Face Hub: what would be sent, and sending it in one commit.

    RUN --export--> a folder of its own --> files, sizes, SHA-256 --> the repository, if it is not there --> one commit
    DIR, exported before ----------------^

What is sent is seen there all at once or not at all, so that the same command may be run again after any error; files
that are there already are not sent again. The token is read from the environment, and goes nowhere but to the Hub.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from leveret.data.shards import file_sha256
from leveret.errors import UserError
from leveret.export.huggingface import CONFIG
from leveret.export.write import SHARD_SIZE, export_model
from leveret.strangers.files import beside

TOKEN = "HF_TOKEN"
"""The environment's variable that holds the token."""


@dataclass(frozen=True)
class File:
    """A file to be sent. size: bytes."""

    name: str
    size: int
    sha256: str


@contextmanager
def folder_of(
    reference: str, repo: str, dtype: str = "float32", max_shard_size: str = SHARD_SIZE, licence: str | None = None
) -> Iterator[Path]:
    """The folder to publish: of RUN, RUN/STAGE or RUN/STAGE@STEP an export for the time being, or DIR as it is.

    Raises:
        UserError: there is no such model, or a folder's card is missing.
    """
    folder = Path(reference)
    if (folder / CONFIG).is_file():
        if licence or dtype != "float32" or max_shard_size != SHARD_SIZE:
            raise UserError(f"{folder} is published as it is; give its options to `leveret export hf`")
        if not (folder / "README.md").is_file():
            raise UserError(f"there is no README.md in {folder}; `leveret export hf` writes a model card")
        yield folder
        return
    with TemporaryDirectory(prefix="leveret-publish-") as scratch:
        export_model(reference, Path(scratch) / "model", dtype, max_shard_size, repo, licence)
        yield Path(scratch) / "model"


def files_of(folder: Path) -> list[File]:
    """All files that would be sent: those of the folder that are not hidden.

    Raises:
        UserError: one is a link that leads out of the folder, to what nobody meant to publish.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in (beside(folder, name) for name in names) if path.is_file()]
    return [File(path.name, path.stat().st_size, file_sha256(path)) for path in found]


def check_name(repo: str) -> str:
    """Where a repository is, or will be.

    Raises:
        UserError: the Hub has no such names.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
        whole = "/" in repo
    except HFValidationError:
        whole = False
    if not whole:
        raise UserError(f"{repo!r} is no name of a repository on the Hub; write it as USER/NAME")
    return f"{constants.ENDPOINT}/{repo}"


def check_token() -> str:
    """The token. Raises UserError where there is none; one that the Hub's own tools have stored is not taken."""
    if token := os.environ.get(TOKEN):
        return token
    raise UserError(f"set {TOKEN} to a token of the Hub's that may write (https://huggingface.co/settings/tokens)")


def publish(folder: Path, files: list[File], repo: str, private: bool) -> str:
    """Makes the repository, if there is none, and sends these files of a folder in one commit.

    Returns:
        Where the commit is to be seen.

    Raises:
        UserError: there is no token, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it uses

    hub = HfApi(token=check_token())
    try:
        made = hub.create_repo(repo, private=private, exist_ok=True)
        sent = hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(file.name) for file in files],
            commit_message="The model, its card and its tokenizer, by leveret publish",
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserError(_why(error, repo)) from None
    return str(sent.commit_url)


def _why(error: BaseException, repo: str) -> str:
    """One line that has nothing in it of what was sent, the token least of all."""
    first: BaseException | None = error
    while first is not None and getattr(first, "response", None) is None:
        first = first.__cause__ or first.__context__
    status = None if first is None else first.response.status_code  # type: ignore[attr-defined]
    again = "what is there is whole; the same command may be run again"
    if status in (401, 403):
        return f"the Hub does not let this {TOKEN} write to {repo} ({status}); take a token that may, of its owner"
    if status is not None and status < 500:
        return (
            f"the Hub refuses {repo} or what is sent to it ({status}); check its name and the front matter of README.md"
        )
    said = f"the Hub answered {status}" if status else f"the Hub cannot be reached ({type(error).__name__})"
    return f"{said}; {again}"
