"""The first of its kind is kept, however the calls are cut; near is as the Jaccard index says; memory is bounded."""

import io
import re
import tracemalloc
from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from leveret.data import dedup
from leveret.data.dedup import CHECKS, DedupConfig, Fingerprints, Seen, fingerprints

EXACT = DedupConfig()
NEAR = DedupConfig(near=0.8)
ONLY_NEAR = DedupConfig(exact=False, near=0.8)


def first(texts: list[str], config: DedupConfig) -> list[bool]:
    return Seen(config).first(fingerprints(texts, config)).tolist()


def signatures(texts: list[str], config: DedupConfig = NEAR) -> NDArray[np.uint8]:
    found = fingerprints(texts, config).signatures
    assert found is not None
    return found


def sentence(random: np.random.Generator, words: int) -> list[str]:
    return [f"w{number}" for number in random.integers(0, 5000, words)]


def shingles(words: list[str], ngram: int = 5) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(min(ngram, len(words)))), strict=False))


def jaccard(a: list[str], b: list[str]) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def edited(random: np.random.Generator, words: list[str], edits: int) -> list[str]:
    words = list(words)
    for place in random.choice(len(words), edits, replace=False):
        words[place] = f"new{random.integers(10**9)}"
    return words


# --- what is the same ----------------------------------------------------------------------------------------


def test_exact_is_the_same_text_but_for_white_space() -> None:
    texts = ["A hare.", " A\n\nhare.\t", "a hare.", "A hare", "A hare.", "Ahare."]
    assert first(texts, EXACT) == [True, False, True, True, False, True]


@settings(deadline=None)
@given(st.text("ab \n\u2003", max_size=30), st.text("ab \n\u2003", max_size=30), st.integers(1, 9))
def test_exact_fingerprints_of_long_texts_are_taken_piece_by_piece(a: str, b: str, piece: int) -> None:
    whole = fingerprints([a, b], EXACT).exact
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_PIECE", piece)
        assert np.array_equal(fingerprints([a, b], EXACT).exact, whole)
    assert (whole[0] == whole[1]) == (a.split() == b.split())


def test_near_looks_at_words_only() -> None:
    words = sentence(np.random.default_rng(0), 60)
    plain = " ".join(words)
    assert first([plain, plain.upper() + "!", ", ".join(words), " ".join(words[::-1])], NEAR) == [
        True,
        False,
        False,
        True,
    ]


def test_a_text_shorter_than_a_shingle_is_one_shingle() -> None:
    assert first(["red hare", "Red hare!", "red", "hare red", "red hare runs"], NEAR) == [True, False, True, True, True]


def test_texts_without_words_are_never_near() -> None:
    assert first(["!!!", "???", "", "!!!"], NEAR) == [True, True, True, False]
    assert first(["!!!", "!!!"], ONLY_NEAR) == [True, True]
    assert not signatures(["!!!", "\n"]).any()


def test_what_counts_as_new_is_noted_and_what_is_dropped_counted() -> None:
    random = np.random.default_rng(1)
    words = sentence(random, 300)
    texts = [
        " ".join(words),
        " ".join(words) + " ",
        " ".join(edited(random, words, 3)),
        " ".join(sentence(random, 300)),
    ]
    seen = Seen(NEAR)
    assert seen.first(fingerprints(texts, NEAR)).tolist() == [True, False, False, True]
    assert seen.counts == {"exact": 1, "near": 1}
    assert not seen.first(fingerprints(texts, NEAR)).any()
    assert seen.counts == {"exact": 5, "near": 1}  # the same text as one that was dropped as near


def test_a_chain_of_edits_is_held_against_what_was_kept() -> None:
    """Each is near the one before it; the second is dropped, so the far ones are not near anything kept."""
    random = np.random.default_rng(2)
    chain = [sentence(random, 1000)]
    for _ in range(8):
        chain.append(edited(random, chain[-1], 12))
    assert all(jaccard(a, b) > 0.85 for a, b in pairwise(chain))
    kept = [chain[n] for n, is_first in enumerate(first([" ".join(words) for words in chain], NEAR)) if is_first]
    assert 2 <= len(kept) <= 5
    assert all(jaccard(a, b) < 0.8 for a, b in pairwise(kept))


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_planted_near_duplicates_are_found_and_others_left(threshold: float) -> None:
    random = np.random.default_rng(3)
    config = DedupConfig(near=threshold)
    texts: list[str] = []
    duplicates, others = [], []
    for words in (int(size) for size in random.integers(60, 400, 700)):
        one = sentence(random, words)
        other = edited(random, one, int(random.integers(1, 2 + (1 - threshold) * words / 2)))
        index = jaccard(one, other)
        if index >= threshold or index < threshold - 0.15:
            (duplicates if index >= threshold else others).append(len(texts) + 1)
            texts += [" ".join(one), " ".join(other)]
    kept = np.array(first(texts, config))
    assert min(len(duplicates), len(others)) > 80
    assert (~kept[duplicates]).mean() >= 0.98
    assert kept[others].mean() >= 0.98
    assert kept[::2].all()


# --- signatures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [12, 40, 150, 600, 3000])
def test_signatures_estimate_the_jaccard_index_without_bias(words: int) -> None:
    random = np.random.default_rng(words)
    pairs = []
    for _ in range(max(30, 9000 // words)):
        one = sentence(random, words)
        pairs.append((one, edited(random, one, int(random.integers(1, 2 + words // 15)))))
    a, b = (signatures([" ".join(pair[side]) for pair in pairs])[:, -CHECKS // 8 :] for side in (0, 1))
    estimate = 1 - 2 * np.bitwise_count(a ^ b).sum(axis=1) / CHECKS
    error = estimate - [jaccard(*pair) for pair in pairs]
    deviation = 1 / np.sqrt(CHECKS)  # at most, of one estimate
    assert abs(error.mean()) < 4 * deviation / np.sqrt(len(pairs))
    assert abs(error).max() < 4.5 * deviation


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40) | st.text("ab ,", max_size=200), max_size=12), st.integers(1, 100))
def test_a_fingerprint_is_a_function_of_its_text_alone(texts: list[str], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_BLOCK", block)
        together = fingerprints(texts, NEAR)
    for number, text in enumerate(texts):
        alone = fingerprints([text], NEAR)
        assert alone.exact[0] == together.exact[number]
        assert np.array_equal(signatures([text])[0], signatures(texts)[number])
        assert signatures([text])[0].any() == bool(re.search(r"\w", text))


def test_any_characters_have_fingerprints() -> None:
    texts = ["\ud800 half a pair", "\0\0", "İstanbul ﬁ ẞ 猫が好き 𝔘𝔫𝔦", "\ufeff"]
    assert len(set(fingerprints(texts, NEAR).exact.tolist())) == 4
    assert signatures(texts).any(axis=1).tolist() == [True, False, True, False]


def test_fingerprints_travel_as_arrays() -> None:
    for config in (EXACT, NEAR):
        prints = fingerprints(["one", "two words", "three short words"], config)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **prints.arrays())  # type: ignore[arg-type]
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            back = Fingerprints.of(dict(arrays))
        assert np.array_equal(back.exact, prints.exact)
        assert (back.signatures is None) == (config is EXACT)
        if back.signatures is not None:
            assert np.array_equal(back.signatures, signatures(["one", "two words", "three short words"]))
    assert len(fingerprints([], NEAR).exact) == len(signatures([])) == 0


@pytest.mark.parametrize("text", ["x" * 3_000_000, "to and fro " * 300_000, "\n" * 3_000_000])
def test_a_long_text_costs_bounded_memory(text: str) -> None:
    fingerprints(["warm"], NEAR)
    tracemalloc.start()
    try:
        fingerprints([text], NEAR)
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()


# --- order, batches, memory ----------------------------------------------------------------------------------


def one_by_one(prints: Fingerprints, holders: int) -> list[bool]:
    """What Seen(ONLY_NEAR) should say, in plain Python."""
    assert prints.signatures is not None
    most = CHECKS * (1 - 0.9) + 2.33 * (CHECKS * 0.9 * 0.1) ** 0.5
    of_key: dict[tuple[int, bytes], list[bytes]] = {}
    told = []
    for row in prints.signatures:
        checks = row[-CHECKS // 8 :].tobytes()
        keys = [(start, row[start : start + 4].tobytes()) for start in range(0, len(row) - CHECKS // 8, 4)]
        rivals = [rival for key in keys for rival in of_key.get(key, [])]
        differing = [(int.from_bytes(checks) ^ int.from_bytes(rival)).bit_count() for rival in rivals]
        told.append(not row.any() or min(differing, default=CHECKS) > most)
        if told[-1] and row.any():
            for key in keys:
                if len(of_key.setdefault(key, [])) < holders:
                    of_key[key].append(checks)
    return told


@st.composite
def entangled(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Signatures that share keys much, and are near or not."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    documents = draw(st.integers(1, 60))
    rows = np.zeros((documents, signatures([]).shape[1]), dtype=np.uint8)
    checks = CHECKS // 8
    rows[:, :-checks:4] = random.integers(1, draw(st.integers(2, 40)), rows[:, :-checks:4].shape)
    kinds = random.integers(0, 256, (draw(st.integers(1, 6)), checks), dtype=np.uint8)
    rows[:, -checks:] = kinds[random.integers(0, len(kinds), documents)]
    flipped = np.packbits(random.random((documents, CHECKS)) < draw(st.sampled_from([0.0, 0.06, 0.08])), axis=1)
    rows[:, -checks:] ^= flipped
    rows[random.random(documents) < 0.1] = 0
    return rows


def parts(prints: Fingerprints, sizes: list[int]) -> Iterator[Fingerprints]:
    for start, end in pairwise([0, *accumulate(sizes), len(prints.exact) + sum(sizes)]):
        signatures = None if prints.signatures is None else prints.signatures[start:end]
        yield Fingerprints(prints.exact[start:end], signatures)


@settings(max_examples=150, deadline=None)
@given(entangled(), st.lists(st.integers(0, 20), max_size=6), st.integers(1, 70), st.sampled_from([1, 3, 64]))
def test_the_answers_are_those_of_one_by_one_in_any_batches(
    rows: NDArray[np.uint8], sizes: list[int], batch: int, holders: int
) -> None:
    prints = Fingerprints(np.arange(len(rows), dtype=np.uint64), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_BATCH", batch)
        patch.setattr(dedup, "HOLDERS", holders)
        seen = Seen(ONLY_NEAR)
        told = np.concatenate([seen.first(part) for part in parts(prints, sizes)])
    assert told.tolist() == one_by_one(prints, holders)
    assert seen.counts == {"exact": 0, "near": int((~told).sum())}


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=60), st.lists(st.integers(0, 20), max_size=6))
def test_exact_answers_are_those_of_a_set_in_any_batches(hashes: list[int], sizes: list[int]) -> None:
    prints = Fingerprints(np.array(hashes, dtype=np.uint64) << np.uint64(40) | np.uint64(1), None)
    seen = Seen(EXACT)
    told = np.concatenate([seen.first(part) for part in parts(prints, sizes)])
    assert told.tolist() == [number not in hashes[:place] for place, number in enumerate(hashes)]


def test_tables_grow_and_forget_nothing() -> None:
    random = np.random.default_rng(4)
    number = 12_000
    hashes = random.integers(2**60, 2**63, (2, number), dtype=np.uint64)
    rows = random.integers(1, 256, (number, signatures([]).shape[1]), dtype=np.uint8)
    again = rows[random.permutation(number)]
    again[:, -2:] ^= 255
    seen = Seen(NEAR)
    assert all(seen.first(part).all() for part in parts(Fingerprints(hashes[0], rows), [1700] * 7))
    assert not seen.first(Fingerprints(hashes[1], again)).any()
    assert not seen.first(Fingerprints(hashes[0], rows[::-1])).any()
    assert seen.counts == {"exact": number, "near": number}


def test_ten_million_documents_would_fit_in_two_gigabytes() -> None:
    """At a number that fills the tables as 10 million do, all arrays together and those of growing among them."""
    random = np.random.default_rng(5)
    number = 10_000_000 // 64
    width = signatures([]).shape[1]
    tracemalloc.start()
    try:
        seen = Seen(NEAR)
        for _ in range(25):
            size = number // 25
            rows = random.integers(0, 256, (size, width), dtype=np.uint8)
            assert seen.first(Fingerprints(random.integers(0, 2**63, size, dtype=np.uint64), rows)).all()
        del rows
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**31 / 64
    assert most < 2**31 / 64 + 6e6  # of one batch, whatever was seen before


def test_configs_that_make_no_sense_are_refused() -> None:
    for wrong in ({"exact": False}, {"near": 0.3}, {"near": 1.0}, {"ngram": 0}):
        with pytest.raises(ValidationError):
            DedupConfig.model_validate(wrong)
