"""Loss, perplexity and bits per byte of a split against their definitions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from leveret.data.batches import Batches
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import concatenated, make_windows
from leveret.evaluation.loss import held_out_loss
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder

VOCABULARY, LENGTH, CPU = 19, 8, torch.device("cpu")
TEXTS = [f"document {'é' * (n % 4)} number {n}" for n in range(30)]


def ids_of(text: str) -> list[int]:
    """A tokenizer of a sort: a token for every three bytes."""
    data = text.encode()
    return [sum(data[i : i + 3]) % VOCABULARY for i in range(0, len(data), 3)]


def written(folder: Path, masked: bool = False) -> Batches:
    writer = ShardWriter(folder / "shards", VOCABULARY, 50, masked=masked)
    for text in TEXTS:
        ids = ids_of(text)
        learn = [i > 2 for i in range(len(ids))] if masked else None
        writer.add("validation", ids, len(text.encode()), learn)
    writer.finish({n: concatenated(writer.starts(n), s.tokens, LENGTH) for n, s in writer.splits.items()}, {})
    return Batches(TokenStore(folder / "shards").split("validation"), 3, LENGTH)


def decoder(scale: float = 3.0) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=LENGTH,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


@torch.no_grad()
def directly(model: Decoder) -> tuple[float, int]:
    """The mean of minus the log of each next token's probability, by hand; and of how many."""
    ids = [i for text in TEXTS for i in ids_of(text)]
    nats = []
    for start in range(0, len(ids) - LENGTH, LENGTH):
        window = ids[start : start + LENGTH + 1]
        odds = model(torch.tensor([window[:-1]]))[0].double().numpy()
        for place, target in enumerate(window[1:]):
            nats.append(math.log(np.exp(odds[place]).sum()) - odds[place][target])
    return sum(nats) / len(nats), len(nats)


def test_against_a_direct_computation(tmp_path: Path) -> None:
    model = decoder()
    figures = held_out_loss(model, written(tmp_path), CPU)
    loss, count = directly(model)
    tokens, size = sum(len(ids_of(t)) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
    assert figures["loss"] == pytest.approx(loss, abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert figures["tokens"] == count
    assert figures["bits_per_byte"] == pytest.approx(loss / math.log(2) * tokens / size, rel=1e-5)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(tmp_path: Path) -> None:
    figures = held_out_loss(decoder(0.0), written(tmp_path), CPU)
    tokens, size = sum(len(ids_of(t)) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
    assert figures["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY) * tokens / size, rel=1e-5)


def test_masked_splits_have_no_bits_per_byte(tmp_path: Path) -> None:
    figures = held_out_loss(decoder(), written(tmp_path, masked=True), CPU)
    assert figures.keys() == {"loss", "perplexity", "tokens"}
    assert 0 < figures["tokens"] < sum(len(ids_of(t)) for t in TEXTS)


def test_a_few_batches_are_enough_where_asked(tmp_path: Path) -> None:
    batches = written(tmp_path)
    assert held_out_loss(decoder(), batches, CPU, most=2)["tokens"] == 2 * 3 * LENGTH


def test_a_hopeless_model_has_a_finite_perplexity(tmp_path: Path) -> None:
    figures = held_out_loss(decoder(3000.0), written(tmp_path), CPU)
    assert figures["loss"] > 800
    assert math.isfinite(figures["perplexity"])


def test_it_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    model, batches = decoder(), written(tmp_path)
    for training in (True, False):
        model.train(training)
        held_out_loss(model, batches, CPU, most=1)
        assert model.training is training
        assert all(parameter.grad is None for parameter in model.parameters())


def test_by_source_the_parts_make_up_the_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shards", VOCABULARY, 50)
    texts = {0: TEXTS[:20], 1: ["other words " * 3] * 5}
    for number, documents in texts.items():
        for text in documents:
            ids = ids_of(text)
            tokens, lengths = np.array(ids, dtype=np.uint16), np.array([len(ids)])
            writer.extend("validation", tokens, lengths, len(text.encode()), source=number)
    windows, _ = make_windows(writer.starts("validation"), writer.splits["validation"].sources, LENGTH, "best-fit")
    writer.finish({"validation": windows}, {})
    batches = Batches(TokenStore(tmp_path / "shards").split("validation"), 3, LENGTH)
    whole = held_out_loss(decoder(), batches, CPU)
    figures = held_out_loss(decoder(), batches, CPU, labels=["a.txt", "b.txt"])
    apart = figures.pop("by_source")
    assert figures == pytest.approx(whole, rel=1e-6)
    assert list(apart) == ["0: a.txt", "1: b.txt"]
    assert sum(each["tokens"] for each in apart.values()) == whole["tokens"]
    for number, each in enumerate(apart.values()):
        tokens, size = (
            sum(map(len, parts)) for parts in zip(*((ids_of(t), t.encode()) for t in texts[number]), strict=True)
        )
        assert each["bits_per_byte"] == pytest.approx(each["loss"] / math.log(2) * tokens / size)
