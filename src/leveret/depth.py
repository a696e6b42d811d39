"""One dial: model.depth, the number of layers, derives whatever else the recipe leaves open.

    depth --> width, heads, feed-forward --> parameters --> tokens --> batch; width --> rates

What the recipe says itself is kept, and what comes after follows from that. Every constant names its source.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from leveret.errors import UserError

DEPTHS = range(1, 65)
# An aspect ratio of 64, as GPT-2 small's (768 / 12) and nanochat's; heads as wide as in all five reference models.
WIDTH_PER_LAYER = HEAD_WIDTH = 64
# Blocks that learnt more from a token in our own runs (docs/experiments.md): squared ReLU four times as wide as the
# stream, normed queries and keys, blocks that begin as the identity.
BLOCKS = {"mlp": "relu2", "qk_norm": True, "residual_init": "zero"}
CONTEXT = 1024
# Compute-optimal training reads about 20 tokens for each parameter (Hoffmann et al., 2022), tables not counted.
TOKENS_PER_PARAMETER = 20
# The best batch is 0.0306 D^0.383 rows of 2,048 tokens, D the tokens of the run (Bergsma et al., 2025).
BATCH_ROWS, BATCH_EXPONENT, BATCH_ROW_TOKENS = 0.0306, 0.383, 2048
# Muon's updates do not depend on the width (Bernstein, 2025). Best at width 384 in our own runs; nanochat's 0.02 at
# width 768, in our scale of updates, is 3.6e-3.
MUON_RATE = 5e-3
# Of tables and norms: best at width 384 in our own runs, and falling with the root of the width as nanochat's.
TABLE_RATE, TABLE_RATE_WIDTH = 1.5e-2, 384
# A long decay to zero is better than a short one (Bergsma et al., 2025), and steady before it can be extended.
SCHEDULE = {"kind": "wsd", "decay_fraction": 0.6, "min_lr": 0.0}


def expand_depth(content: dict[str, Any]) -> None:
    """Puts what follows from model.depth into a recipe's content, and takes the dial out; without it, does nothing.

    What is wrong besides is left as it is, for the recipe's own check to tell.

    Raises:
        UserError: depth is not a whole number from 1 to 64.
    """
    model = content.get("model")
    if not isinstance(model, dict) or "depth" not in model:
        return
    depth = model.pop("depth")
    if not isinstance(depth, int) or isinstance(depth, bool) or depth not in DEPTHS:
        raise UserError(f"model.depth is a number of layers from {DEPTHS[0]} to {DEPTHS[-1]}, not {depth!r}")
    width = model.setdefault("hidden_size", WIDTH_PER_LAYER * depth)
    if not _is_count(width):
        return
    heads = {"num_hidden_layers": depth, "num_attention_heads": max(1, width // HEAD_WIDTH)}
    _fill(model, heads | {"intermediate_size": 4 * width, "max_position_embeddings": CONTEXT} | BLOCKS)
    training = content.setdefault("pretrain", {})
    if not isinstance(training, dict):
        return
    if not {"steps", "tokens", "epochs"} & training.keys():
        training["tokens"] = TOKENS_PER_PARAMETER * 12 * depth * width**2  # 4 in attention, 8 in the feed-forward layer
    table_rate = float(f"{TABLE_RATE * math.sqrt(TABLE_RATE_WIDTH / width):.2g}")
    for part, rules in (
        ("optimizer", {"kind": "muon", "muon_lr": MUON_RATE, "lr": table_rate}),
        ("schedule", SCHEDULE),
    ):
        if isinstance(settings := training.setdefault(part, {}), dict):
            _fill(settings, rules)
    tokens, data = training.get("tokens"), content.get("data")
    length = (data.get("sequence_length") if isinstance(data, dict) else None) or model["max_position_embeddings"]
    if _is_count(tokens) and _is_count(length):
        best = BATCH_ROWS * tokens**BATCH_EXPONENT * BATCH_ROW_TOKENS
        training.setdefault("batch_size", max(1, 2 ** round(math.log2(best / length))))


def _is_count(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _fill(node: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        node.setdefault(key, value)
