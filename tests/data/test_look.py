"""Samples show documents as they are read; figures of shards are right; tables and pictures come out."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from leveret.data.look import BOUNDARY, CUT, label, plot, render, sample, stats
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import Windows, concatenated
from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

LENGTH = 6
TEXTS = {
    "train": ["one two three", "four", "five six seven eight nine ten eleven twelve", "é is two bytes"],
    "validation": ["four five", "ten is two fives"],
}
SOURCES = [{"kind": "files", "files": [{"name": "a.txt"}, {"name": "b.txt"}]}, {"kind": "hub", "name": "some/set"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(kind="bpe", vocab_size=280, special_tokens=["<eos>"], eos_token="<eos>")
    return train_tokenizer(config, [text for texts in TEXTS.values() for text in texts])


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [*tokenizer.encode(text), int(tokenizer.eos_id or 0)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> TokenStore:
    """The first half of each split is of the first source, the rest of the second."""
    writer = ShardWriter(tmp_path_factory.mktemp("look") / "s", tokenizer.vocab_size, 30)
    for split, texts in TEXTS.items():
        for number, text in enumerate(texts):
            ids = np.array(ids_of(tokenizer, text), dtype=np.uint16)
            source = int(number >= len(texts) // 2)
            writer.extend(split, ids, np.array([len(ids)]), len(text.encode()), source=source)
    windows = {n: concatenated(writer.starts(n), s.tokens, LENGTH) for n, s in writer.splits.items()}
    writer.finish(windows, {"sources": SOURCES})
    return TokenStore(writer.folder)


def shown(renderables: list[Any]) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    for renderable in renderables:
        console.print(renderable)
    return console.export_text()


# --- samples -------------------------------------------------------------------------------------------------


def test_samples_joined_are_the_text(store: TokenStore, tokenizer: Tokenizer) -> None:
    split = store.split("train")
    texts = sample(store, tokenizer, 1000)
    assert len(texts) == len(split.windows) > 3
    ids = [t for text in TEXTS["train"] for t in ids_of(tokenizer, text)]
    plain = {tokenizer.decode(ids[a : a + n], skip_special=False) for a, n in split.windows.pieces.tolist()}
    assert {text.replace(BOUNDARY, "").replace(CUT, "") for text in texts} == plain


def test_borders_of_documents_are_shown(store: TokenStore, tokenizer: Tokenizer) -> None:
    split = store.split("train")
    whole, borders = split.tokens, split.starts.tolist()
    cases = [(0, whole), (0, borders[1]), (1, borders[1]), (borders[1], borders[2] - borders[1] + 2)]
    found = {}
    for start, length in cases:
        split.windows = Windows(np.array([[start, length]]))
        found[start, length] = sample(Fixed(store, split), tokenizer, 1)[0]  # type: ignore[arg-type]
    assert found[0, whole].split(BOUNDARY) == [text + "<eos>" for text in TEXTS["train"]]
    assert found[0, borders[1]] == "one two three<eos>"
    cut = found[1, borders[1]]
    assert cut.startswith(CUT)
    assert cut.endswith(CUT)
    assert cut.count(BOUNDARY) == 1
    last = found[borders[1], borders[2] - borders[1] + 2]
    assert last.startswith("four<eos>" + BOUNDARY)
    assert last.endswith(CUT)


class Fixed:
    """A store of one split."""

    def __init__(self, store: TokenStore, split: Any) -> None:
        self.manifest, self.split = store.manifest, lambda name: split


def test_samples_are_chosen_by_seed(store: TokenStore, tokenizer: Tokenizer) -> None:
    orders = [sample(store, tokenizer, 3, seed) for seed in range(5)]
    assert orders[0] == sample(store, tokenizer, 3, 0)
    assert len({tuple(order) for order in orders}) > 1
    assert sample(store, tokenizer, 1, split="validation")


def test_pieces_of_a_window_stand_apart(store: TokenStore, tokenizer: Tokenizer) -> None:
    split = store.split("train")
    a, _, b = split.starts.tolist()[:3]
    split.windows = Windows(np.array([[b, 2], [a, 2]]), np.array([0, 2]))
    (text,) = sample(Fixed(store, split), tokenizer, 1)  # type: ignore[arg-type]
    first, second = text.split(BOUNDARY)
    assert first.endswith(CUT)
    assert second.endswith(CUT)
    assert TEXTS["train"][2].startswith(first.removesuffix(CUT))
    assert TEXTS["train"][0].startswith(second.removesuffix(CUT))


# --- figures -------------------------------------------------------------------------------------------------


def test_figures_of_shards(store: TokenStore, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leveret.data.look.AT_ONCE", 7)
    found = stats(store, tokenizer)
    ids = {name: [ids_of(tokenizer, text) for text in texts] for name, texts in TEXTS.items()}
    every = [document for documents in ids.values() for document in documents]
    flat = [token for document in every for token in document]
    assert found.lengths.tolist() == sorted(len(document) for document in every)
    assert found.counts.tolist() == [flat.count(token) for token in range(tokenizer.vocab_size)]
    assert found.top[0][1] == max(found.counts)
    assert dict(found.top)["'<eos>'"] == 6
    assert found.never_seen == 1 - len(set(flat)) / tokenizer.vocab_size
    assert found.bytes_per_token == sum(len(t.encode()) for ts in TEXTS.values() for t in ts) / len(flat)
    train = found.splits["train"]
    assert (train.documents, train.tokens) == (4, sum(map(len, ids["train"])))
    covered = LENGTH * train.windows + 1
    assert train.lost == pytest.approx(1 - covered / train.tokens, abs=1e-6)
    assert train.padded == 0
    assert 0 < found.entries_for(0.5) < found.entries_for(0.99) <= len(set(flat))


def test_figures_by_source(store: TokenStore, tokenizer: Tokenizer) -> None:
    sources = stats(store, tokenizer).sources
    assert list(sources) == ["0: a.txt and 1 more", "1: some/set"]
    assert [source.documents for source in sources.values()] == [3, 3]
    first = [*TEXTS["train"][:2], TEXTS["validation"][0]]
    assert sources["0: a.txt and 1 more"].tokens == sum(len(ids_of(tokenizer, text)) for text in first)
    split = store.split("train")
    border = int(split.starts[2])
    of_first = int((split.windows.pieces[:, 0] < border).sum())
    read = [LENGTH * of_first, LENGTH * (len(split.windows) - of_first)]
    assert [source.read for source in sources.values()] == read


def test_what_is_drawn_often_counts_often(store: TokenStore, tokenizer: Tokenizer) -> None:
    split = store.split("train")
    once = stats(store, tokenizer).sources["1: some/set"].read
    split.windows = split.windows.select(np.repeat(np.arange(len(split.windows)), 3))
    splits = {"train": split, "validation": store.split("validation")}

    class Drawn(Fixed):
        def __init__(self) -> None:
            self.manifest, self.split = store.manifest, splits.__getitem__

    found = stats(Drawn(), tokenizer)  # type: ignore[arg-type]
    assert found.sources["1: some/set"].read == 3 * once
    assert found.splits["train"].lost == stats(store, tokenizer).splits["train"].lost


def test_examples_have_no_sources(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Packing shuffles them, so that what came from where is not known."""
    writer = ShardWriter(tmp_path / "s", 300, 100, masked=True)
    for n in range(9):
        writer.add("train", list(range(n + 2)), 5, [True] * (n + 2))
    writer.finish({"train": Windows(np.array([[0, 20], [20, 34]]))}, {"sources": SOURCES})
    found = stats(TokenStore(writer.folder), tokenizer)
    assert found.sources == {}
    assert "Sources" not in shown(render(found))
    assert [path.name for path in plot(found, tmp_path)] == ["lengths.png", "frequencies.png"]


def test_shards_that_do_not_tell_their_sources(store: TokenStore, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Those of before mixtures."""
    manifest = json.loads(json.dumps(store.manifest))
    for split in manifest["splits"].values():
        del split["sources"]
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert stats(TokenStore(tmp_path), tokenizer).sources == {}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "files", "files": [{"name": "x.parquet"}]}, "x.parquet"),
        (
            {"kind": "hub", "name": "HuggingFaceFW/fineweb-edu", "subset": "sample-10BT"},
            "HuggingFaceFW/fineweb-edu/sample-10BT",
        ),
        ({"kind": "generated", "generator": "shell"}, "shell"),
    ],
)
def test_labels(source: dict[str, Any], words: str) -> None:
    assert label(source) == words


# --- tables and pictures -------------------------------------------------------------------------------------


def test_tables(store: TokenStore, tokenizer: Tokenizer) -> None:
    found = stats(store, tokenizer)
    text = shown(render(found))
    for title in ("Splits: ", "Sources", "Tokens of a document: ", "Tokens: "):
        assert title in text
    assert f"{found.bytes_per_token:.2f} bytes of text a token" in text
    assert f"{found.never_seen:.1%} never occur" in text
    assert "0: a.txt and 1 more" in text
    assert "'<eos>'" in text
    bars = [line.count("█") for line in text.splitlines() if "█" in line]
    assert max(bars) == 32


def test_names_with_signs_of_their_own_are_shown_as_they_are(tmp_path: Path) -> None:
    """`[/x]` is no markup of the terminal's, `$a_$` no formula in a picture."""
    config = TokenizerConfig(kind="bpe", vocab_size=280, special_tokens=["[/INST]"], eos_token="[/INST]")
    tokenizer = train_tokenizer(config, ["one two"])
    writer = ShardWriter(tmp_path / "s", tokenizer.vocab_size, 30)
    writer.add("train", [int(tokenizer.eos_id or 0)] * 20, 3)
    name = "[/x] $a_$.txt"
    windows = {"train": concatenated(writer.starts("train"), 20, LENGTH)}
    writer.finish(windows, {"sources": [{"kind": "files", "files": [{"name": name}]}]})
    found = stats(TokenStore(writer.folder), tokenizer)
    text = shown(render(found))
    assert "'[/INST]'" in text
    assert f"0: {name}" in text
    assert (tmp_path / "sources.png") in plot(found, tmp_path)


def test_shards_without_a_window_have_no_figures(tmp_path: Path, tokenizer: Tokenizer) -> None:
    writer = ShardWriter(tmp_path / "s", tokenizer.vocab_size, 30)
    writer.add("train", [1], 3)
    writer.finish({"train": concatenated(writer.starts("train"), 1, LENGTH)}, {})
    with pytest.raises(UserError, match="too few tokens for a window"):
        stats(TokenStore(writer.folder), tokenizer)


def test_pictures(store: TokenStore, tokenizer: Tokenizer, tmp_path: Path) -> None:
    paths = plot(stats(store, tokenizer), tmp_path / "new" / "plots")
    assert sorted(path.name for path in paths) == ["frequencies.png", "lengths.png", "sources.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in paths)
