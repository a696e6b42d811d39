"""What can be compared: our runs, exported folders, and models of others, known by hashes before weights are read.

    RUN, RUN/STAGE, RUN/STAGE@STEP   a checkpoint of a run
    DIR                              a folder in transformers' format
    ORG/NAME, ORG/NAME@REVISION      a model on the Hugging Face hub

A model whose shape is not the decoder's is computed by transformers (evaluation/foreign.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

from safetensors import safe_open

from leveret.api import load_model
from leveret.data.shards import file_sha256
from leveret.errors import UserError
from leveret.evaluation.foreign import ForeignModel
from leveret.evaluation.suite import Model
from leveret.export.huggingface import Model as Published
from leveret.export.huggingface import locate, open_model, read_facts
from leveret.export.source import find_source
from leveret.hardware.device import pick_device
from leveret.model.counts import count_parameters
from leveret.recipe import digest
from leveret.rundir import find_run
from leveret.strangers.tensors import checked_tensors

ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "vocab.*", "merges.txt", "tokenizer.model", "spiece.model", "*.jinja"]
"""What is taken from the hub of a model that transformers computes."""


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    name: as shown. revision: the commit, if it is from the hub. identity: a hash of what decides its answers besides
    the weights: shape, tokenizer, template. load: reads the weights.
    """

    name: str
    reference: str
    revision: str | None
    computed_by: str
    weights_sha256: str
    identity: str
    parameters: int
    context: int
    device: str
    load: Callable[[], Model]


def find_candidate(reference: str, device: str = "auto") -> Candidate:
    """What a reference means; its weights are hashed, and not loaded yet.

    Raises:
        UserError: there is no such model, or neither the decoder nor transformers can compute it.
    """
    kind = pick_device(device).type
    if reference.endswith(".gguf"):
        raise UserError(f"{reference}: llama.cpp tells no likelihoods of given texts: name the run, or a folder")
    folder, _, revision = reference.partition("@")
    if (Path(folder) / "config.json").is_file() and not (Path(folder) / "recipe.yaml").exists():
        return _published(reference, folder, revision or None, device, kind)
    try:
        find_run(reference)
    except UserError:
        if not ON_HUB.fullmatch(folder):
            raise
        return _published(reference, folder, revision or None, device, kind)
    source = find_source(reference)
    shape = source.config.model_dump(mode="json")
    return Candidate(
        f"{source.run.name}/{source.stage}" + (f"@{source.checkpoint.step}" if "@" in reference else ""),
        reference,
        None,
        "leveret",
        source.checkpoint.weights_sha256,
        digest([shape, source.tokenizer.content_hash, source.stage]),
        count_parameters(source.config).total,
        source.config.max_position_embeddings,
        kind,
        lambda: load_model(reference, device),
    )


def _published(reference: str, name: str, revision: str | None, device: str, kind: str) -> Candidate:
    """A model in transformers' format."""
    try:
        model = open_model(name, revision)
    except UserError:
        return _foreign(reference, name, revision, device, kind)
    facts = [model.config.model_dump(mode="json"), model.tokenizer.content_hash, model.chats]
    return Candidate(
        _short(model),
        reference,
        model.origin.revision,
        "leveret",
        model.weights_sha256,
        digest(facts),
        count_parameters(model.config).total,
        model.config.max_position_embeddings,
        kind,
        lambda: load_model(str(model.origin.folder), device),
    )


def _short(model: Published) -> str:
    if model.origin.revision is None:
        return model.origin.folder.resolve().name
    return model.origin.name.rpartition("/")[2]


def _foreign(reference: str, name: str, revision: str | None, device: str, kind: str) -> Candidate:
    """A model that transformers computes."""
    origin = locate(name, revision, FILES)
    folder = origin.folder
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{reference} has no safetensors, and pickles such as pytorch_model.bin are not read")
    others = [path for pattern in FILES if "safetensors" not in pattern for path in sorted(folder.glob(pattern))]
    hashes = [file_sha256(path) for path in files]
    weights = hashes[0] if len(hashes) == 1 else sha256(json.dumps(hashes).encode()).hexdigest()
    facts = read_facts(folder / "config.json")
    context = next((facts[key] for key in ("max_position_embeddings", "n_positions") if key in facts), 0)
    if not isinstance(context, int):
        raise UserError(f"{folder / 'config.json'} gives no number of positions")
    return Candidate(
        name.rstrip("/").rpartition("/")[2],
        reference,
        origin.revision,
        "transformers",
        weights,
        digest({path.name: file_sha256(path) for path in others}),
        sum(map(_numbers, files)),
        context,
        kind,
        lambda: ForeignModel(folder, pick_device(device), weights),
    )


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds."""
    with safe_open(checked_tensors(path), "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # it is no mapping
