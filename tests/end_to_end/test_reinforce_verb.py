"""`leveret reinforce`: a policy learns what is rewarded, goes on to the same bits after a kill, and ranks share it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_project import GPU, Command

from leveret.data.examples import one_turn
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.posttraining.prompts import prompt_of, read_references, write_prompts_as_shards
from leveret.tokenizer.tokenizer import Tokenizer

WORDS = ("alpha", "beta", "gamma", "delta")
CLOCKS = {"tokens_per_second", "train_seconds", "mfu", "peak_memory_bytes", *GPU}

RECIPE = """
name: chooser
tokenizer:
  kind: bpe
  vocab_size: 300
  special_tokens: [<pad>, <eos>, <instruction>, <command>]
  pad_token: <pad>
  eos_token: <eos>
  template: command
data:
  sources: [{paths: [texts.jsonl]}]
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
finetune:
  examples: [{paths: [any.jsonl]}]
  steps: 80
  batch_size: 8
  optimizer: {lr: 1e-2}
  validation_fraction: 0
  log_every: 20
"""
REWARDED = (
    "reinforce={examples: [{paths: [gamma.jsonl]}], steps: 30, batch_size: 32, max_new_tokens: 6, kl: 0.001, "
    "validation_fraction: 0.2, eval_every: 10, checkpoint_every: 5, precision: fp32, optimizer: {lr: 5e-3}, "
    "schedule: {kind: constant, warmup_steps: 0}}"
)
"""What is rewarded is one of the words that the base answers with."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, leveret: Command) -> Path:
    """Examples for a base that answers every prompt with any of the words, and those of what is rewarded."""
    folder = tmp_path_factory.mktemp("chooser")
    asked = [f"choose for {first} and {second}" for first in WORDS for second in WORDS] + [
        f"a word, {n}" for n in WORDS
    ]
    every = [{"prompt": text, "completion": word} for text in asked for word in WORDS]
    rows = {
        "texts": [{"text": " ".join((*WORDS, *asked))} for _ in range(20)],
        "any": every,
        "gamma": [row for row in every if row["completion"] == "gamma"],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "chooser.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path, leveret: Command) -> Path:
    """All stages, the base's first."""
    leveret("run", "chooser.yaml", REWARDED, "--run-dir", "undisturbed", cwd=project)
    return project / "undisturbed"


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics but for what a clock says."""
    lines = (run / "reinforce" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def weights(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / f"reinforce/checkpoints/step-{step:08d}/manifest.json").read_text())
    return {name: digest for name, digest in manifest["files"].items() if name.endswith(".safetensors")}


def test_a_policy_learns_what_is_rewarded(undisturbed: Path) -> None:
    steps = [row for row in metrics(undisturbed) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))
    first, last = steps[0]["reward"], sum(row["reward"] for row in steps[-5:]) / 5
    assert 0.05 < first < 0.6
    assert last > 0.9
    assert steps[0]["even_groups"] < 0.5 < steps[-1]["even_groups"]
    assert steps[-1]["ended"] > 0.9
    assert all(row["exact"] == row["reward"] and "parses" not in row for row in steps)
    assert steps[0]["kl"] == 0.0 < min(row["kl"] for row in steps[1:]), "it leaves its base"
    held_out = [row for row in metrics(undisturbed) if "validation_reward" in row]
    assert [row["step"] for row in held_out] == [10, 20, 30]
    assert held_out[-1]["validation_reward"] == 1.0


@pytest.mark.long
def test_after_a_kill_it_goes_on_to_the_same_bits(project: Path, undisturbed: Path, leveret: Command) -> None:
    command = ("reinforce", "chooser.yaml", REWARDED, "--from", "undisturbed/finetune", "--run-dir", "killed")
    leveret(*command, cwd=project, exit_code=137, LEVERET_FAULTS="die@18")
    assert "reinforce: going on from step 15\n" in leveret(*command, cwd=project).stderr
    assert metrics(project / "killed") == metrics(undisturbed)
    assert weights(project / "killed", 30) == weights(undisturbed, 30)


def test_prompts_are_kept_with_what_is_expected(undisturbed: Path) -> None:
    store = TokenStore(Path(json.loads((undisturbed / "data.json").read_text())["reinforce"]))
    assert store.verify() == []
    found = {reference.response for split in ("train", "validation") for reference in read_references(store, split)}
    assert found == {"gamma"}
    split = store.split("train")
    assert len(split.windows) == len(read_references(store, "train"))
    longest = store.manifest["examples"]["longest_prompt"]
    assert 0 < max(len(prompt_of(split, window)) for window in range(len(split.windows))) <= longest


def test_it_is_evaluated_and_reported_like_any_stage(undisturbed: Path) -> None:
    results = json.loads((undisturbed / "reinforce" / "evaluation" / "results.json").read_text())
    assert results["stage"] == "reinforce"
    assert results["loss"]["loss"] < 1.0, "of the expected answers to held-out prompts"
    assert "| reinforce |" in (undisturbed / "report.md").read_text()


def test_what_leaves_no_room_for_an_answer_is_left_out(undisturbed: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(undisturbed / "tokenizer")
    examples = [one_turn(text, "gamma") for text in ("choose", "choose one of the words", "choose " * 30)]
    facts = write_prompts_as_shards(examples, tokenizer, tmp_path / "some", 64, 0.0, {}, max_new_tokens=40)
    assert (facts["left_out"], facts["train"]["examples"]) == (1, 2)
    with pytest.raises(UserError, match="3 leave no room for max_new_tokens 63 in 64 tokens"):
        write_prompts_as_shards(examples, tokenizer, tmp_path / "none", 64, 0.0, {}, max_new_tokens=63)


@pytest.mark.long
def test_two_ranks_answer_what_one_does(project: Path, undisturbed: Path, environment: Mapping[str, str]) -> None:
    changes = ["reinforce.steps=3", "reinforce.micro_batch_size=8", "--run-dir"]
    base = ["--from", "undisturbed/finetune"]  # else two ranks make another base, in its last bits
    command = [sys.executable, "-m", "leveret", "reinforce", "chooser.yaml", REWARDED, *base, *changes]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for words in ([*command, "one"], [command[0], *torchrun, *command[1:], "two"]):
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = ([row for row in metrics(project / name) if "loss" in row] for name in ("one", "two"))
    assert len(one) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
