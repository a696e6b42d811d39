"""Hub datasets through the libraries' own code: from a hub of ours that misbehaves, and from folders."""

import io
import json
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unruly_server import COMMIT, STALL, UnrulyHub

from leveret.data.config import OriginConfig, SourceConfig
from leveret.data.hub import HubPiece, RetryConfig, hub_pieces, hub_rows, resolve_revision
from leveret.errors import UserError

FAST = RetryConfig(attempts=4, first_wait=0.001, longest_wait=0.002)
TRIES = 6
"""Requests that the libraries make before they give up what a server does not answer well."""
TRAIN = "data/train-00000.parquet"
LINES = "lines-00000.jsonl"


def parquet(texts: list[str], group: int = 100) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": range(len(texts))}), file, row_group_size=group, compression="none")
    return file.getvalue()


def _texts(count: int, size: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [chance.randbytes(size // 2).hex() for _ in range(count)]


BIG = _texts(1200, 12_000, seed=1)
"""14 MB, so that the libraries need several requests for them."""
LONG = BIG + BIG
"""Of .jsonl the libraries read 15 MB at once."""
SMALL = _texts(250, 50, seed=2)


@pytest.fixture(scope="module")
def repositories() -> dict[str, dict[str, bytes]]:
    lines = [json.dumps({"text": text}) for text in LONG]
    card = "---\nconfigs:\n- config_name: all\n  data_files: data/*.parquet\n---\n"
    return {
        "org/tables": {"README.md": card.encode(), TRAIN: parquet(BIG), "data/train-00001.parquet": parquet(SMALL)},
        "org/lines": {LINES: "\n".join(lines).encode(), "lines-00001.jsonl": b'{"text": "the last"}\n'},
        "org/code": {"code.py": b"raise SystemExit('a data set ran its code')", "x.jsonl": b'{"text": "a"}\n'},
    }


@pytest.fixture
def hub(
    repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[UnrulyHub]:
    """The hub as the libraries know it; their own waits take no time."""
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
    monkeypatch.setattr("datasets.utils.file_utils.time", hurried)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # else it calls a host far away
    with UnrulyHub(repositories) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def soon_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", STALL / 2)


def dataset(name: str, **more: str) -> OriginConfig:
    return OriginConfig.model_validate({"kind": "hub", "name": name, **more})


def first_piece(name: str) -> HubPiece:
    return hub_pieces(dataset(name), retry=FAST)[0]


def test_pieces_are_the_files_of_the_split_at_one_commit(hub: UnrulyHub) -> None:
    pieces = hub_pieces(SourceConfig(kind="hub", name="org/tables", subset="all", revision="main"), retry=FAST)
    assert [piece.name for piece in pieces] == [TRAIN, "data/train-00001.parquet"]
    assert {piece.revision for piece in pieces} == {COMMIT}
    assert pickle.loads(pickle.dumps(pieces)) == pieces
    assert [piece.name for piece in hub_pieces(dataset("org/lines"), retry=FAST)] == [LINES, "lines-00001.jsonl"]


def test_the_revision_is_looked_up_once(hub: UnrulyHub) -> None:
    assert resolve_revision(dataset("org/tables"), retry=FAST) == COMMIT
    hub.requests.clear()
    assert resolve_revision(dataset("org/tables", revision=COMMIT), retry=FAST) == COMMIT
    assert not hub.requests


def test_rows_are_numbered_in_order(hub: UnrulyHub) -> None:
    told: list[str] = []
    pieces = hub_pieces(dataset("org/tables"), told.append, FAST)
    assert list(hub_rows(pieces[1], told.append)) == [
        (number, {"text": text, "n": number - 1}) for number, text in enumerate(SMALL, start=1)
    ]
    assert [row["text"] for _, row in hub_rows(pieces[0], told.append)] == BIG
    last = hub_pieces(dataset("org/lines"), told.append, FAST)[1]
    assert list(hub_rows(last, told.append)) == [(1, {"text": "the last"})]
    assert told == []


def test_a_datasets_own_code_is_not_run(hub: UnrulyHub) -> None:
    with pytest.raises(UserError, match=r"'org/code', split 'train': cannot be read .*scripts are no longer supported"):
        hub_pieces(dataset("org/code"), retry=FAST)


# --- what may pass ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("soon_timed_out")
@pytest.mark.parametrize("fault", ["drop", "end", "refuse", "stall", "busy", "broken", "unavailable"])
def test_a_passing_failure_costs_no_row(hub: UnrulyHub, fault: str) -> None:
    """One more failure in a row than the libraries bear, in mid-file: our own retry is the last of those told."""
    piece, told = first_piece("org/tables"), list[str]()
    hub.faults[TRAIN] = ["fine"] * 2 + [fault] * TRIES
    assert [row["text"] for _, row in hub_rows(piece, told.append)] == BIG
    assert len(told) == TRIES
    assert all(line.startswith(f"dataset 'org/tables', split 'train', {TRAIN}") for line in told)
    assert "after row" in told[-1]
    assert "attempt 2 of 4 in 0.0 s" in told[-1]


def test_an_answer_cut_short_unnoticed_costs_no_row(hub: UnrulyHub) -> None:
    piece, told = first_piece("org/tables"), list[str]()
    hub.faults[TRAIN] = ["short", "fine", "short", "short"]
    assert [row["text"] for _, row in hub_rows(piece, told.append)] == BIG
    assert len(told) == 1  # a short end of the file is noticed by us, others by the libraries, which go on in silence


@pytest.mark.usefixtures("soon_timed_out")
def test_a_slow_drip_is_waited_for(hub: UnrulyHub) -> None:
    piece, told = first_piece("org/tables"), list[str]()
    hub.faults[TRAIN] = ["drip"]
    assert [row["text"] for _, row in hub_rows(piece, told.append)] == BIG
    assert told == []


@pytest.mark.parametrize("fault", ["unavailable", "drop"])
def test_other_formats_survive_too(hub: UnrulyHub, fault: str) -> None:
    piece, told = first_piece("org/lines"), list[str]()
    hub.faults[LINES] = ["fine"] * 2 + [fault] * TRIES
    rows = list(hub_rows(piece, told.append))
    assert [row["text"] for _, row in rows] == LONG
    assert [number for number, _ in rows] == list(range(1, len(LONG) + 1))
    assert len(told) == TRIES
    assert "after row" in told[-1]


def test_each_new_row_brings_new_patience(hub: UnrulyHub) -> None:
    piece, told = hub_pieces(dataset("org/tables"), retry=FAST.model_copy(update={"attempts": 2}))[0], list[str]()
    hub.faults[TRAIN] = ["fine", "fine", *["broken"] * TRIES] * 2
    assert [row["text"] for _, row in hub_rows(piece, told.append)] == BIG
    assert len(told) == 2 * TRIES


def test_facts_are_asked_for_again(hub: UnrulyHub) -> None:
    told: list[str] = []
    hub.faults["api"] = ["unavailable", "refuse", "unavailable"]
    assert len(hub_pieces(dataset("org/tables"), told.append, FAST)) == 2
    assert len(told) == 3


def test_patience_ends(hub: UnrulyHub) -> None:
    piece, told = first_piece("org/tables"), list[str]()
    hub.faults[TRAIN] = ["unavailable"] * 100
    with pytest.raises(UserError, match=r"train-00000\.parquet: given up after 4 attempts \(status 503\); try again"):
        list(hub_rows(piece, told.append))
    assert len(told) == 4 * TRIES - 1  # the first is no retry


def test_waits_double_up_to_the_longest() -> None:
    retry = RetryConfig(first_wait=1, longest_wait=10)
    for failures, longest in enumerate([1, 2, 4, 8, 10, 10], start=1):
        waits = {retry.wait(failures) for _ in range(20)}
        assert len(waits) > 1
        assert longest / 2 <= min(waits) <= max(waits) <= longest
    assert retry.wait(10_000) <= 10


# --- what will not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [("unauthorized", "status 401: .*log in"), ("forbidden", "status 403: no access"), ("gone", "404")],
)
def test_a_lasting_failure_ends_at_once(hub: UnrulyHub, fault: str, said: str) -> None:
    piece, told = first_piece("org/tables"), list[str]()
    hub.faults[TRAIN] = ["fine", "fine", fault]
    with pytest.raises(UserError, match=said) as caught:
        list(hub_rows(piece, told.append))
    assert told == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dataset("org/nothing"), r"'org/nothing', split 'train': cannot be read \(status 401: no such dataset"),
        (dataset("org/tables", revision="v9"), "status 404: not found on the hub; check its name and revision"),
        (dataset("org/tables", revision="9" * 40), "status 404: not found on the hub; check its name and revision"),
        (dataset("org/tables", subset="some"), r"\(some\).* 'some' not found. Available: \['all'\]"),
        (dataset("org/tables", split="test"), "split 'test': no such split; there are: train"),
        (dataset("no name at all"), "cannot be read"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(hub: UnrulyHub, config: OriginConfig, said: str) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=said) as caught:
        hub_pieces(config, told.append, FAST)
    assert told == []
    assert "\n" not in str(caught.value)


def test_offline_means_offline(hub: UnrulyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub_pieces(dataset("org/tables"), retry=FAST)


# --- beginning in the middle, and folders ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "texts"), [("org/tables", BIG), ("org/lines", LONG)])
def test_reading_may_begin_anywhere(hub: UnrulyHub, name: str, texts: list[str]) -> None:
    piece = first_piece(name)
    for start in (0, 100, 555, len(texts) - 1, len(texts), len(texts) + 1):
        rows = list(hub_rows(piece, print, start))
        assert [number for number, _ in rows] == list(range(start + 1, len(texts) + 1))
        assert [row["text"] for _, row in rows] == texts[start:]


def test_row_groups_before_the_start_are_not_fetched(hub: UnrulyHub) -> None:
    piece = first_piece("org/tables")
    hub.requests.clear()
    next(hub_rows(piece, print, start=1100))
    ranges = [spans.removeprefix("bytes=").split("-") for _, path, spans in hub.requests if path.endswith(TRAIN)]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < 3_000_000


def test_a_folder_is_read_like_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / TRAIN).write_bytes(parquet(SMALL[:150]))
    (folder / "data" / "train-00001.parquet").write_bytes(parquet(SMALL[150:]))
    config = dataset(str(folder))
    pieces = hub_pieces(config)
    assert resolve_revision(config) is None
    assert [piece.name for piece in pieces] == [TRAIN, "data/train-00001.parquet"]
    assert [row["text"] for piece in pieces for _, row in hub_rows(piece, print)] == SMALL


def test_a_broken_file_in_a_folder_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.parquet").write_bytes(parquet(SMALL)[:-100])
    told: list[str] = []
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read \(.*footer"):
        list(hub_rows(hub_pieces(dataset(str(tmp_path)))[0], told.append))
    assert told == []
