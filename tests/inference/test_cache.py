"""Decoding with the cache gives what reading each row again from its beginning gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from leveret.inference.cache import KeyValueCache
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder

CAPACITY = 16


def decoder(**knobs: Any) -> Decoder:
    base = {
        "vocab_size": 23,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": CAPACITY,
    }
    model = Decoder(ModelConfig.model_validate(base | knobs)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + (parameter.dim() == 1))
    return model


def new_cache(model: Decoder, rows: int, capacity: int = CAPACITY) -> KeyValueCache:
    cache = KeyValueCache(model.config, rows, capacity, torch.device("cpu"), torch.float32)
    cache.lengths = [0] * rows
    return cache


class Reader:
    """Feeds rows of unequal length to the cache, right-padded, and keeps what each has read."""

    def __init__(self, model: Decoder, rows: int) -> None:
        self.model, self.cache = model, new_cache(model, rows)
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def read(self, counts: list[int]) -> list[Tensor]:
        """Reads counts[row] new tokens of each row at once. The logits [count, V] of each row's new tokens."""
        news = [torch.randint(23, (count,), generator=self.generator).tolist() for count in counts]
        longest = max(counts)
        # The padding is an ordinary token: it must be the mask, not its value, that hides it.
        ids = torch.tensor([new + [11] * (longest - len(new)) for new in news])
        positions, mask = self.cache.place(longest)
        logits = self.model(ids, positions, mask, self.cache)
        self.cache.advance(counts)
        for text, new in zip(self.texts, news, strict=True):
            text += new
        return [logits[row, :count] for row, count in enumerate(counts)]

    @torch.no_grad()
    def again(self, count: int, row: int) -> Tensor:
        """The logits of a row's last tokens, computed from the row's beginning without a cache."""
        logits: Tensor = self.model(torch.tensor([self.texts[row]]))
        return logits[0, len(self.texts[row]) - count :]

    def check(self, counts: list[int]) -> None:
        for row, found in enumerate(self.read(counts)):
            assert torch.allclose(found, self.again(counts[row], row), atol=1e-5), (row, self.texts[row])


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped, interleaved": {"num_key_value_heads": 2, "rope_layout": "interleaved", "residual": "parallel"},
    "learned, one key head": {"position": "learned", "num_key_value_heads": 1, "head_dim": 6},
    "no positions": {"position": "none"},
    "qk_norm": {"qk_norm": True},
}


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("name", SHAPES)
def test_token_by_token_after_prompts_of_unequal_length(name: str, window: int | None) -> None:
    reader = Reader(decoder(sliding_window=window, **SHAPES[name]), rows=3)
    reader.check([5, 1, 3])
    assert reader.cache.lengths == [5, 1, 3]
    for _ in range(10):
        reader.check([1, 1, 1])
    assert reader.cache.lengths == [15, 11, 13]


@pytest.mark.parametrize("window", [None, 3])
def test_several_tokens_at_once_later_on(window: int | None) -> None:
    """A second piece of each prompt, of other lengths, some rows standing still."""
    reader = Reader(decoder(sliding_window=window, num_key_value_heads=2), rows=3)
    for counts in ([2, 4, 1], [3, 1, 4], [0, 1, 0], [1, 0, 4], [1, 1, 1]):
        reader.check(counts)
    assert reader.cache.lengths == [7, 7, 10]


def test_one_token_at_a_time_from_the_first() -> None:
    reader = Reader(decoder(), rows=2)
    for _ in range(CAPACITY):
        reader.check([1, 1])
    with pytest.raises(AssertionError):
        reader.cache.place(1)  # it is full


def test_positions_and_masks() -> None:
    cache = new_cache(decoder(), rows=2)
    positions, masks = cache.place(3)
    assert positions.tolist() == [[0, 1, 2]], "of both rows"
    assert masks == (None, None), "causal order says it"
    cache.advance([3, 1])
    positions, masks = cache.place(1)
    assert positions.tolist() == [[3], [1]]
    assert isinstance(masks.everything, torch.Tensor)
    assert masks.window is None
    assert masks.everything[:, 0].tolist() == [[[True, True, True, True]], [[True, True, False, False]]]
    cache.lengths = [4, 4]
    assert cache.place(1)[1] == (None, None), "one token sees everything"
    windowed = new_cache(decoder(sliding_window=2), rows=1)
    mask = windowed.place(3)[1].window
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_rows_that_are_done_give_their_place_to_the_last() -> None:
    reader = Reader(decoder(num_key_value_heads=2), rows=4)
    reader.check([2, 6, 1, 4])
    reader.check([1, 1, 1, 1])
    reader.cache.swap(1, 3, (7, 5))
    reader.texts = [reader.texts[0], reader.texts[3], reader.texts[2]]
    reader.cache.lengths = [3, 5, 2]
    for _ in range(3):
        reader.check([1, 1, 1])


@pytest.mark.parametrize("lengths", [(5, 7), (0, 7), (5, 0)])
def test_what_is_swapped_is_there(lengths: tuple[int, int]) -> None:
    """A row of no tokens is overwritten, not kept."""
    cache = new_cache(decoder(), rows=2)
    cache.keys.copy_(torch.randn(cache.keys.shape))
    cache.values.copy_(torch.randn(cache.values.shape))
    before = cache.keys.clone(), cache.values.clone()
    cache.swap(0, 1, lengths)
    for store, old in zip((cache.keys, cache.values), before, strict=True):
        assert torch.equal(store[:, 1, :, : lengths[0]], old[:, 0, :, : lengths[0]])
        assert torch.equal(store[:, 0, :, : lengths[1]], old[:, 1, :, : lengths[1]])


def test_a_part_is_the_same_memory() -> None:
    """Rows read as part of a cache go on as rows of the whole."""
    model = decoder()
    reader = Reader(model, rows=3)
    whole = reader.cache
    reader.check([4, 4, 4])
    reader.cache, reader.texts = whole.part(1, [0, 2]), [[], reader.texts[2][:2]]
    reader.check([6, 3])
    whole.lengths, reader.texts = [6, 5], [reader.texts[0], reader.texts[1]]
    reader.cache = whole.part(1, [6, 5])
    reader.check([1, 2])
    assert whole.lengths == [6, 5], "its own lengths are as they were"


def test_bytes_of_a_slot_are_those_of_its_tensors() -> None:
    cache = new_cache(decoder(num_key_value_heads=2), rows=5)
    assert 5 * cache.bytes_per_slot == cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
    assert cache.bytes_per_slot == 2 * 2 * 2 * CAPACITY * 4 * 4  # k, v; layers; K; S; D; bytes


def test_a_row_is_the_same_in_any_company() -> None:
    """Alone, or beside a much longer one."""
    model = decoder()
    long, short = Reader(model, rows=2), Reader(model, rows=1)
    text = torch.randint(23, (2, 12), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for reader, ids, real in ((long, text, [12, 3]), (short, text[1:, :3], [3])):
            positions, mask = reader.cache.place(ids.shape[1])
            model(ids, positions, mask, reader.cache)
            reader.cache.advance(real)
        outs = []
        for reader, rows in ((long, 2), (short, 1)):
            positions, mask = reader.cache.place(1)
            outs.append(model(torch.full((rows, 1), 8), positions, mask, reader.cache)[-1])
    assert torch.allclose(outs[0], outs[1], atol=1e-6)


def test_bfloat16_keys_and_values_come_close() -> None:
    model = decoder()
    cache = KeyValueCache(model.config, 1, CAPACITY, torch.device("cpu"), torch.bfloat16)
    cache.lengths = [0]
    ids = torch.randint(23, (1, 8), generator=torch.Generator().manual_seed(2))
    assert (
        cache.keys.nbytes + cache.values.nbytes == 2 * 2 * 1 * 4 * CAPACITY * 4 * 2
    )  # k, v; layers; B; K; S; D; bytes
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        positions, mask = cache.place(7)
        model(ids[:, :7], positions, mask, cache)
        cache.advance([7])
        positions, mask = cache.place(1)
        found = model(ids[:, 7:], positions, mask, cache)
        assert (found - model(ids)[:, 7:]).abs().max() < 0.1
