"""The model card says what the run knows, and of what it does not know that it is not known."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import ENGLISH, GPT2, made_tokenizer, write_run

from leveret.export.card import write_card_of_run
from leveret.export.write import export_model
from leveret.model.counts import count_parameters
from leveret.rundir import RunDir, write_json
from leveret.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return made_tokenizer("bpe-gpt2", ENGLISH)


def card_of(run: Path, licence: str | None = None) -> tuple[dict[str, Any], str]:
    """The front matter, and the text after it."""
    whole = write_card_of_run(str(run), licence).read_text("utf-8")
    _, front, text = whole.split("---\n", 2)
    return yaml.safe_load(front), text


def test_what_nobody_wrote_down_is_said_to_be_unknown(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", tokenizer)
    front, text = card_of(run)
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["leveret"]}
    for said in (
        "Licence of the weights: not stated",
        "What it was trained on is not known here",
        "| machine | not recorded |",
        "| tokens trained on | not recorded |",
        "| energy | not measured: nothing here counts it |",
        "| cost | not known: no price was given |",
        "There is no picture of the loss",
        "These weights were not evaluated",
        "No audit of leaks was run",
        "It is a base model",
        "Its authors are not recorded",
        "was trained was not measured",
    ):
        assert said in text, said
    config = RunDir(run).recipe().model
    assert f"{count_parameters(config).total:,} parameters" in text
    assert f"reads at most {config.max_position_embeddings} tokens" in text
    assert str(tmp_path) not in text


SOURCES = [
    {"kind": "hub", "name": "someone/texts", "subset": "10BT", "split": "train", "licence": "ODC-By-1.0 | MIT"},
    {"kind": "files", "paths": ["/home/me/private/notes.txt"]},
]
SUMMARY = {"steps": 10, "tokens": 123_456, "epochs": 1.0, "train_seconds": 7200.0, "tokens_per_second": 17.0,
           "mfu": 0.5, "peak_memory_bytes": None, "final_validation_loss": 2.5, "energy_kwh": 1.25,
           "cost": 3.5}  # fmt: skip


def known_run(folder: Path, tokenizer: Tokenizer) -> RunDir:
    """A run about whose pretraining everything is known."""
    run = RunDir(write_run(folder, tokenizer, **GPT2))
    counted = [{"source": 0, "documents": 900, "tokens": 100_000}, {"source": 1, "documents": 5, "tokens": 23_456}]
    documents = [{"read": 901, "revision": "abc123def"}, {"read": 5}]
    manifest = {"sources": SOURCES, "documents": documents, "splits": {"train": {"sources": counted}}}
    write_json(run / "shards" / "manifest.json", manifest)
    write_json(run / "data.json", {"pretrain": "shards"})
    write_json(run / "environment.json", {"device_name": "NVIDIA L20", "cpu_cores": 8, "torch": "2.13"})
    write_json(run / "pretrain" / "summary.json", SUMMARY)
    (run / "pretrain" / "plots").mkdir()
    (run / "pretrain" / "plots" / "loss.png").write_bytes(b"picture")
    return run


def test_everything_that_is_known_is_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = known_run(tmp_path / "known", tokenizer)
    front, text = card_of(run.path, "apache-2.0")
    assert front["license"] == "apache-2.0"
    assert front["datasets"] == ["someone/texts"]
    for said in (
        "| pretrain: someone/texts 10BT | ODC-By-1.0 \\| MIT | abc123def | 900 | 100,000 |",
        "| pretrain: notes.txt (files) | not stated |  | 5 | 23,456 |",
        "NVIDIA L20, cpu cores 8, torch 2.13",
        "| tokens trained on | 123,456 |",
        "| hours of training steps | 2.00 |",
        "| energy | 1.25 kWh |",
        "| cost | $3.50 |",
        "learned positions, LayerNorm, GELU",
        "ollama create",
        'leveret generate runs/model "Once upon a time"',
    ):
        assert said in text, said
    assert "/home/me" not in text
    export_model(str(run.path), tmp_path / "out", name="me/model", licence="apache-2.0")
    written = (tmp_path / "out" / "README.md").read_text()
    assert "from_pretrained('me/model')" in written
    assert "![loss in pretrain](loss-pretrain.png)" in written
    assert (tmp_path / "out" / "loss-pretrain.png").read_bytes() == b"picture"


def test_a_sum_names_the_stages_that_it_lacks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = known_run(tmp_path / "half", tokenizer)
    checkpoints = (run / "pretrain" / "checkpoints").rename(run / "kept")
    (run / "finetune").mkdir()
    checkpoints.rename(run / "finetune" / "checkpoints")
    write_json(run / "finetune" / "summary.json", SUMMARY | {"tokens": 44, "energy_kwh": None, "cost": None})
    run.begin("finetune", {"the base model": "f" * 64})
    run.finish("finetune", {"the base model": "f" * 64}, 60.0)
    _, text = card_of(run.path)
    assert "| energy | 1.25 kWh (without finetune: not known) |" in text
    assert "| cost | $3.50 (without finetune: not known) |" in text
    assert "| tokens trained on | 123,500 |" in text
    assert "It is a base model" not in text
    assert "apply_chat_template" in text
    assert "leveret chat runs/model" in text
    _, base = card_of(run.path)
    assert "stages: pretrain, then finetune" in base


@pytest.mark.parametrize("same", [True, False])
def test_only_what_was_measured_on_these_weights_is_shown(same: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = RunDir(write_run(tmp_path / "run", tokenizer))
    digest = json.loads(next((run / "pretrain" / "checkpoints").glob("*/manifest.json")).read_text())["files"]
    results = {
        "stage": "pretrain", "step": 0, "protocol": {"decoding": "greedy, float32", "limit": None},
        "weights_sha256": digest["model.safetensors"] if same else "0" * 64,
        "loss": {"loss": 2.0, "perplexity": 7.39, "tokens": 1000},
        "sets": {"held": {"examples": 20, "correct": 15, "interval_95": [0.53, 0.89], "accuracy": 0.75,
                          "ended_by_itself": 20, "by_category": {}}},
    }  # fmt: skip
    write_json(run / "pretrain" / "evaluation" / "results.json", results)
    _, text = card_of(run.path)
    assert ("| held | 20 | 15 | 75.0% | 53.0% to 89.0% | 100.0% |" in text) == same
    assert ("Protocol: decoding: greedy, float32" in text) == same
    assert ("These weights were not evaluated" in text) != same


@pytest.mark.parametrize("revision", ["0123abc", None])
def test_a_model_of_others_stays_theirs(revision: str | None, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tokenizer)
    source = "someone/small" if revision else str(tmp_path / "somewhere")
    write_json(run / "imported.json", {"source": source, "revision": revision, "chats": False})
    front, text = card_of(run)
    assert front.get("base_model") == ("someone/small" if revision else None)
    assert ("started from someone/small at revision 0123abc" in text) == bool(revision)
    assert str(tmp_path) not in text
