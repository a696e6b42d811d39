"""Log-likelihoods of continuations against one plain pass over each sequence."""

import pytest
import torch

from leveret.evaluation import likelihood
from leveret.evaluation.likelihood import Pair, encode_pair, likelihoods
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.tokenizer.train import train_tokenizer

CONTEXT = 24
SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu"},
    "shared norm": {"residual": "parallel-shared-norm"},
    "window": {"sliding_window": 4},
    "padded vocabulary": {"vocab_size": 61},
}
GROUPS = [
    [Pair([1, 2, 3], [4, 5]), Pair([1, 2, 3], [4, 6, 7]), Pair([1, 2, 3], [8])],
    [Pair([9, 8, 7, 6], [5, 4]), Pair([9, 8, 2, 2, 2], [5, 4])],
    [Pair([11], [12])],
    [Pair([3, 1, 4, 1, 5, 9, 2, 6], [5, 3])],
    [Pair([1, 2], [3]), Pair([1, 2], [3])],
]


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 48, "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
    return Decoder(ModelConfig.model_validate(shape | changes)).eval()


@torch.inference_mode()
def plainly(model: Decoder, pair: Pair) -> tuple[float, bool]:
    whole = (pair.context + pair.continuation)[-CONTEXT - 1 :]
    logs = model(torch.tensor([whole[:-1]]))[0].log_softmax(-1)[-len(pair.continuation) :]
    read = torch.tensor(whole[-len(logs) :])
    return logs.gather(1, read[:, None]).sum().item(), bool((logs.argmax(-1) == read).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_shared_beginnings_change_nothing(shape: str) -> None:
    model = decoder(**SHAPES[shape])
    for group, found in zip(GROUPS, likelihoods(model, GROUPS), strict=True):
        for pair, each in zip(group, found, strict=True):
            value, greedy = plainly(model, pair)
            assert each.loglikelihood == pytest.approx(value, abs=1e-4)
            assert (each.greedy, each.cut, each.unscored) == (greedy, 0, 0)


def test_greedy_is_told_of_what_the_model_would_write() -> None:
    model = decoder()
    with torch.inference_mode():
        first = int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
        second = int(model(torch.tensor([[1, 2, 3, first]]))[0, -1].argmax())
    pairs = [Pair([1, 2, 3], [first, second]), Pair([1, 2, 3], [first, (second + 1) % 50])]
    assert [each.greedy for each in likelihoods(model, [pairs])[0]] == [True, False]


def test_a_beginning_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = decoder(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: seen.append(ids.numel()) or hidden(ids, *rest))
    likelihoods(model, [[Pair(list(range(10)), [20, 21]), Pair(list(range(10)), [22, 23])]])
    assert seen == [12]  # ten of the context, and of each continuation all but the last


def test_rows_hold_many_groups_and_batches_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", 40)
    monkeypatch.setattr(likelihood, "ROW_TOKENS", 20)
    model, shapes = decoder(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: shapes.append(ids.shape) or hidden(ids, *rest))
    groups = [[Pair([number + 1] * size, [2])] for number, size in enumerate((3, 23, 7, 20, 6, 10, 4))]
    found = likelihoods(model, groups)
    assert shapes == [(1, 23), (2, 20), (1, 10)]  # one too long, then 20 and 10 + 7 + 3, then 6 + 4
    for group, each in zip(groups, found, strict=True):
        assert each[0].loglikelihood == pytest.approx(plainly(model, group[0])[0], abs=1e-4)


def test_what_is_too_long_loses_its_beginning() -> None:
    model = decoder()
    long = Pair(list(range(1, 31)), [4, 5])
    fits = Pair(list(range(CONTEXT - 1)), [4, 5])
    huge = Pair([1, 2, 3], [n % 50 for n in range(CONTEXT + 6)])
    (over, whole), (whole_huge,) = likelihoods(model, [[long, fits], [huge]])
    assert (over.cut, over.unscored) == (32 - CONTEXT - 1, 0)
    assert over.loglikelihood == pytest.approx(plainly(model, long)[0], abs=1e-4)
    assert whole.cut == 0
    assert (whole_huge.cut, whole_huge.unscored) == (3, 6)  # one token is needed to begin with
    assert whole_huge.loglikelihood == pytest.approx(
        plainly(model, Pair(huge.continuation[5:6], huge.continuation[6:]))[0], abs=1e-4
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig.model_validate(
        {"kind": "bpe", "vocab_size": 300, "special_tokens": ["<eos>"], "eos_token": "<eos>"}
    )
    return train_tokenizer(config, ["the cat sat on the mat, a cat and a hat."] * 20)


def test_the_whole_text_is_encoded_and_then_cut(tokenizer: Tokenizer) -> None:
    pair = encode_pair(tokenizer, "the cat", " sat on")
    assert pair == (tokenizer.encode("the cat"), tokenizer.encode("the cat sat on")[len(tokenizer.encode("the cat")) :])


def test_white_space_at_a_context_s_end_belongs_to_the_continuation(tokenizer: Tokenizer) -> None:
    assert encode_pair(tokenizer, "the cat ", "sat") == encode_pair(tokenizer, "the cat", " sat")


def test_an_empty_context_is_the_token_that_starts_a_text(tokenizer: Tokenizer) -> None:
    assert encode_pair(tokenizer, "", "the cat") == ([tokenizer.eos_id], tokenizer.encode("the cat"))
    assert encode_pair(tokenizer, " ", "cat") == ([tokenizer.eos_id], tokenizer.encode(" cat"))
