"""The same ids through tiktoken, several times faster, for byte-level BPE that tiktoken can express.

tiktoken merges any neighbours whose join is in the vocabulary, lowest id first; tokenizers follows the list of merges.
They agree when ids follow the order of merges: when two neighbours spell a token, nothing has merged across its ends
yet, so its inside went the way it goes in isolation, and that way ends in the pair of the merge list.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from leveret.tokenizer.patterns import PATTERNS, PROBE_TEXT
from leveret.tokenizer.pieces import merge_pairs, piece_bytes

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer as Backend

# tiktoken's regular expressions give up within about a million steps of backtracking (a run of spaces, say) and
# panic; texts longer than this go the slow way.
LONGEST_TEXT = 200_000


def tiktoken_twin(definition: dict[str, Any], plain: Backend) -> tiktoken.Encoding | None:
    """A tiktoken encoding with the ids of `plain` (which takes special text as text), or None where none is proven."""
    pattern = _split_pattern(definition)
    model = definition["model"]
    if pattern is None or model["type"] != "BPE":
        return None
    joined = [left + right for left, right in merge_pairs(definition)]
    if not all(model["vocab"][a] < model["vocab"][b] for a, b in pairwise(joined)):
        return None
    import tiktoken

    pieces, _ = piece_bytes(definition)
    merged = set(joined)
    # What no merge makes is unreachable, but for single bytes: special and reserved entries are left out.
    ranks = {pieces[i]: i for token, i in model["vocab"].items() if token in merged or len(token) == 1}
    if len({piece for piece in ranks if len(piece) == 1}) < 256:
        return None
    twin = tiktoken.Encoding("leveret", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return twin if twin.encode_ordinary(PROBE_TEXT) == plain.encode(PROBE_TEXT).ids else None


def _split_pattern(definition: dict[str, Any]) -> str | None:
    """The regular expression of a tokenizer cut by one of our patterns and nothing else."""
    if definition["normalizer"] or any(not token["special"] for token in definition["added_tokens"]):
        return None
    steps = (definition["pre_tokenizer"] or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex", True):
        return None
    pattern = steps[0]["pattern"].get("Regex")
    isolated = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"] and not steps[1]["add_prefix_space"]
    return pattern if isolated and pattern in PATTERNS.values() else None
