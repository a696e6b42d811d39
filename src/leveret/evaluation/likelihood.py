"""How likely a model finds continuations of contexts: what is shared is computed once.

    texts --encode_pair--> ids --_plant--> one tree a group --_rows--> rows --> batches --> log-likelihoods

The sequences of a group (a question's choices) that begin alike share their beginning, wherever they part: a group
becomes a tree, each token of which sees the tokens that lead to it. A row holds as many trees as fill it, so that
little is padding. Logits are made only where a continuation is read. None of it changes a result by more than rounding.

Letters: B rows, T tokens, C hidden size, N places that logits are made at, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left, insort
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

BATCH_TOKENS = {"cpu": 1024}
"""Most tokens of a batch, padding too: on a CPU few, whose activations stay in the cache."""
GPU_BATCH_TOKENS = 32768
ROW_TOKENS = 256
"""Of a row, unless a tree is longer: attention looks at a whole row, so that long ones cost more."""
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
    its Likelihood's cut and unscored. branches: some token is not after the one before it. number: of the group.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    read: list[list[tuple[int, int]]] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)
    branches: bool = False
    number: int = 0

    def look(self, seen: np.ndarray) -> None:
        """Tells each token what it sees: itself, as bool [T, T] says already, and what leads to it."""
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]


def _plant(number: int, group: Sequence[Pair], context: int) -> _Tree:
    """Of sequences longer than a model's context plus the last token, which is only read, the beginning is cut."""
    tree = _Tree(number=number)
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


def _rows(trees: Sequence[_Tree]) -> list[list[_Tree]]:
    """Trees put together into rows of about ROW_TOKENS, each where the least room is left over (best fit, the largest
    first); the longest row first.
    """
    rows: list[list[_Tree]] = []
    room: list[tuple[int, int]] = []  # of each row, and its number; ascending
    for tree in sorted(trees, key=lambda tree: len(tree.ids), reverse=True):
        size = len(tree.ids)
        at = bisect_left(room, (size, 0))
        if at == len(room):
            left, number = max(ROW_TOKENS - size, 0), len(rows)
            rows.append([tree])
        else:
            left, number = room.pop(at)
            left -= size
            rows[number].append(tree)
        insort(room, (left, number))
    return sorted(rows, key=_tokens, reverse=True)


def _tokens(row: Sequence[_Tree]) -> int:
    return sum(len(tree.ids) for tree in row)


def _batches(rows: Sequence[list[_Tree]], most: int) -> Iterator[list[list[_Tree]]]:
    """So many of the rows in order that with their padding they are at most as long, or one alone."""
    begin = 0
    while begin < len(rows):
        end = begin + max(1, most // max(1, _tokens(rows[begin])))
        yield list(rows[begin:end])
        begin = end


def _hidden(model: Decoder, rows: Sequence[list[_Tree]], device: torch.device) -> Tensor:
    """Hidden states of a batch's places, one tree after the other [N, C]."""
    tokens = _tokens(rows[0])
    ids, positions = np.zeros((2, len(rows), tokens), dtype=np.int64)
    seen = np.zeros((len(rows), tokens, tokens), dtype=bool)
    seen[:, range(tokens), range(tokens)] = True  # padding sees itself alone
    places: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        begin = 0
        for tree in row:
            part = slice(begin, begin + len(tree.ids))
            ids[number, part], positions[number, part] = tree.ids, tree.positions
            tree.look(seen[number, part, part])
            places += [(number, begin + node) for node in tree.places]
            begin = part.stop
    ids_BT = torch.from_numpy(ids).to(device)
    if all(len(row) == 1 and not row[0].branches for row in rows):  # causal order says what is seen
        hidden = model.hidden(ids_BT)
    else:
        positions_BT, seen_BTT = torch.from_numpy(positions).to(device), torch.from_numpy(seen).to(device)
        window = model.config.sliding_window
        near = seen_BTT if window is None else seen_BTT & (positions_BT[:, :, None] - positions_BT[:, None] < window)
        hidden = model.hidden(ids_BT, positions_BT, Masks(seen_BTT[:, None], near[:, None]))
    return hidden[[row for row, _ in places], [node for _, node in places]]


def _read(model: Decoder, hidden_NC: Tensor, place: Tensor, token: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of each token at its place, and whether it is the likeliest there; places ascend."""
    step = max(1, HEAD_BYTES // (4 * model.config.vocabulary))
    values, best = [], []
    for begin in range(0, len(hidden_NC), step):
        logits_NV = model.head(hidden_NC[begin : begin + step]).float()
        first, last = torch.searchsorted(place, torch.tensor([begin, begin + step], device=place.device)).tolist()
        at = place[first:last] - begin
        found, most = logits_NV[at, token[first:last]], logits_NV.amax(dim=-1)
        best += (found == most[at]).tolist()
        total = most + logits_NV.sub_(most[:, None]).exp_().sum(dim=-1).log_()  # without a copy of the table's width
        values += (found - total[at]).tolist()
    return values, best


@torch.inference_mode()
def likelihoods(model: Decoder, groups: Sequence[Sequence[Pair]]) -> list[list[Likelihood]]:
    """The likelihood of each pair's continuation after its context; a group's pairs share what they have in common.

    Sequences too long for the model lose their beginning, as in lm-evaluation-harness; `cut` tells.

    Args:
        model: on its device, in its dtype, not in training mode.
    """
    device = model.norm.get_parameter("weight").device  # matrices may be packed
    trees = [_plant(number, group, model.config.max_position_embeddings) for number, group in enumerate(groups)]
    results: list[list[Likelihood]] = [[] for _ in groups]
    for rows in _batches(_rows(trees), BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS)):
        chosen = [tree for row in rows for tree in row]
        starts = np.cumsum([0, *(len(tree.places) for tree in chosen)]).tolist()
        edges = sorted(
            (start + place, token, at, pair)
            for at, (tree, start) in enumerate(zip(chosen, starts, strict=False))
            for pair, reads in enumerate(tree.read)
            for place, token in reads
        )
        place, token = (torch.tensor([edge[i] for edge in edges], dtype=torch.long, device=device) for i in (0, 1))
        values, best = _read(model, _hidden(model, rows, device), place, token)
        sums = [[0.0] * len(tree.read) for tree in chosen]
        greedy = [[True] * len(tree.read) for tree in chosen]
        for (_, _, at, pair), value, likeliest in zip(edges, values, best, strict=True):
            sums[at][pair] += value
            greedy[at][pair] &= likeliest
        for at, tree in enumerate(chosen):
            found = zip(sums[at], greedy[at], tree.missing, strict=True)
            results[tree.number] = [Likelihood(value, all_best, *missing) for value, all_best, missing in found]
    return results
