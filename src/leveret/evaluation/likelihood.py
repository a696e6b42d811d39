"""How likely a model finds continuations of contexts: what is shared is computed once.

    texts --encode_pair--> ids --_plant--> one tree a group --by size--> batches --> log-likelihoods

The sequences of a group (a question's choices) that begin alike share their beginning, wherever they part: a group
becomes one row, each token of which sees the tokens that lead to it. Logits are made only where a continuation is
read. Neither changes a result by more than rounding.

Letters: B rows, T tokens, C hidden size, N places that logits are made at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.model.masks import Masks
from leveret.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = {"cpu": 2048}
"""Most tokens of a batch, padding too: on a CPU few, whose activations stay in the cache."""
GPU_BATCH_TOKENS = 32768
HEAD_BYTES = 64 << 20
"""Of the logits that are made at once."""


class Pair(NamedTuple):
    """Ids of a context, which is never empty, and of what goes on from it."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """Of a continuation.

    loglikelihood: natural logarithm, summed over its tokens. greedy: each of them is the likeliest. cut: tokens that
    were left out at the context's start, for want of room. unscored: tokens of its own that were.
    """

    loglikelihood: float
    greedy: bool
    cut: int
    unscored: int


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """Ids as lm-evaluation-harness makes them: the whole text is encoded, and cut after as many tokens as the context
    alone has; its trailing white space belongs to the continuation. An empty context is the token that starts a text
    (bos, without one eos).

    Raises:
        UserError: there is no such token.
    """
    if not context:
        start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if start is None:
            raise UserError("the tokenizer has no token that starts or ends a text, so that nothing can stand in front")
        ids = tokenizer.encode(continuation)
        return Pair([start], ids[1:] if ids[:1] == [start] and len(ids) > 1 else ids)
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    at = min(len(tokenizer.encode(bare)), len(whole) - 1) if bare else 0
    if at < 1:  # white space, or less than the first token, which leaves nothing to begin with
        return encode_pair(tokenizer, "", context + continuation)
    return Pair(whole[:at], whole[at:])


@dataclass(slots=True)
class _Tree:
    """A group's sequences in one row, a token after its parent.

    places: nodes that logits are made at, with their numbers. read: for each pair, (place, id that follows). missing:
    its Likelihood's cut and unscored. branches: some token is not after the one before it.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    read: list[list[tuple[int, int]]] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)
    branches: bool = False


def _plant(group: Sequence[Pair], context: int) -> _Tree:
    """Of sequences longer than a model's context plus the last token, which is only read, the beginning is cut."""
    tree = _Tree()
    children: dict[tuple[int, int], int] = {}
    for pair in group:
        whole = pair.context + pair.continuation
        over = max(0, len(whole) - context - 1)
        kept = whole[over:]
        unscored = max(0, over + 1 - len(pair.context))  # a token must be in front of the first that is read
        first, node = len(kept) - 1 - len(pair.continuation) + unscored, -1
        reads = []
        for position, (token, following) in enumerate(pairwise(kept)):
            parent, node = node, children.setdefault((node, token), len(tree.ids))
            if node == len(tree.ids):
                tree.ids.append(token)
                tree.positions.append(position)
                tree.parents.append(parent)
                tree.branches |= parent != node - 1
            if position >= first:
                reads.append((tree.places.setdefault(node, len(tree.places)), following))
        tree.read.append(reads)
        tree.missing.append((min(over, len(pair.context)), unscored))
    return tree


def _batches(trees: Sequence[_Tree], most: int) -> Iterator[list[int]]:
    """Numbers of the trees, the longest first; those without branches apart, for causal order is their mask."""
    order = sorted(range(len(trees)), key=lambda i: (trees[i].branches, len(trees[i].ids)), reverse=True)
    batch: list[int] = []
    for number in order:
        tree = trees[number]
        if batch:
            longest, branches = len(trees[batch[0]].ids), trees[batch[0]].branches
            if branches != tree.branches or (len(batch) + 1) * longest > most:
                yield batch
                batch = []
        batch.append(number)
    if batch:
        yield batch


def _seen(trees: Sequence[_Tree], tokens: int) -> np.ndarray:
    """Which tokens each sees: itself and those that lead to it; bool [B, T, T]. Padding sees itself alone."""
    seen = np.zeros((len(trees), tokens, tokens), dtype=bool)
    seen[:, range(tokens), range(tokens)] = True
    for row, tree in zip(seen, trees, strict=True):
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                row[node] |= row[parent]
    return seen


def _hidden(model: Decoder, trees: Sequence[_Tree], device: torch.device) -> Tensor:
    """Hidden states of a batch's places, one tree after the other [N, C]."""
    tokens = max(len(tree.ids) for tree in trees)
    ids, positions = np.zeros((2, len(trees), tokens), dtype=np.int64)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)] = tree.ids
        positions[row, : len(tree.ids)] = tree.positions
    ids_BT = torch.from_numpy(ids).to(device)
    if not trees[0].branches:
        hidden = model.hidden(ids_BT)
    else:
        positions_BT = torch.from_numpy(positions).to(device)
        seen = torch.from_numpy(_seen(trees, tokens)).to(device)[:, None]  # [B, 1, T, T]
        window = model.config.sliding_window
        near = (
            seen if window is None else seen & (positions_BT[:, None, :, None] - positions_BT[:, None, None] < window)
        )
        hidden = model.hidden(ids_BT, positions_BT, Masks(seen, near))
    rows = [row for row, tree in enumerate(trees) for _ in tree.places]
    return hidden[rows, [node for tree in trees for node in tree.places]]


def _read(model: Decoder, hidden_NC: Tensor, place: Tensor, token: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of each token at its place, and whether it is the likeliest there; places ascend."""
    step = max(1, HEAD_BYTES // (4 * model.config.vocabulary))
    values, best = [], []
    for begin in range(0, len(hidden_NC), step):
        logits_NV = model.head(hidden_NC[begin : begin + step]).float()
        first, last = torch.searchsorted(place, torch.tensor([begin, begin + step], device=place.device)).tolist()
        at, read = place[first:last] - begin, token[first:last]
        values += (logits_NV[at, read] - logits_NV.logsumexp(dim=-1)[at]).tolist()
        best += (logits_NV.argmax(dim=-1)[at] == read).tolist()
    return values, best


@torch.inference_mode()
def likelihoods(model: Decoder, groups: Sequence[Sequence[Pair]]) -> list[list[Likelihood]]:
    """The likelihood of each pair's continuation after its context; a group's pairs share what they have in common.

    Sequences too long for the model lose their beginning, as in lm-evaluation-harness; `cut` tells.

    Args:
        model: on its device, in its dtype, not in training mode.
    """
    device = model.norm.get_parameter("weight").device  # matrices may be packed
    trees = [_plant(group, model.config.max_position_embeddings) for group in groups]
    results: list[list[Likelihood]] = [[] for _ in groups]
    for batch in _batches(trees, BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS)):
        chosen = [trees[number] for number in batch]
        starts = np.cumsum([0, *(len(tree.places) for tree in chosen)])
        edges = [
            (int(start) + place, token, row, pair)
            for row, (tree, start) in enumerate(zip(chosen, starts, strict=False))
            for pair, reads in enumerate(tree.read)
            for place, token in reads
        ]
        edges.sort(key=lambda edge: edge[0])
        place, token = (torch.tensor([edge[i] for edge in edges], dtype=torch.long, device=device) for i in (0, 1))
        values, best = _read(model, _hidden(model, chosen, device), place, token)
        sums = [[0.0] * len(tree.read) for tree in chosen]
        greedy = [[True] * len(tree.read) for tree in chosen]
        for (_, _, row, pair), value, likeliest in zip(edges, values, best, strict=True):
            sums[row][pair] += value
            greedy[row][pair] &= likeliest
        for row, number in enumerate(batch):
            found = zip(sums[row], greedy[row], chosen[row].missing, strict=True)
            results[number] = [Likelihood(value, all_best, *missing) for value, all_best, missing in found]
    return results
