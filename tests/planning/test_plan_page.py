"""The commands of docs/how-to/plan.md print what the page shows, and the verb answers wrong wishes in one line."""

import json
import re
import shlex
from pathlib import Path

import pytest
from matplotlib import image
from typer.testing import CliRunner

from leveret.cli.app import app
from leveret.errors import UserError
from leveret.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "plan.md").read_text("utf-8")
BLOCKS = re.findall(r"```console\n\$ leveret (.*)\n((?:.*\n)*?)```", PAGE)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def plan(line: str) -> str:
    done = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_the_page_shows_what_comes(command: str, output: str) -> None:
    assert plan(command) == output


def test_the_page_has_the_plan_and_four_comparisons() -> None:
    commands = [command for command, _ in BLOCKS]
    assert commands[0] == "plan --gpu a100-40gb --budget 55"
    assert sum("--compare" in command or command.count("--gpu ") > 1 for command in commands) >= 4


def test_a_comparison_is_drawn(tmp_path: Path) -> None:
    plan("plan --gpu a100-40gb --compare budget=20,55 --plot pictures/p.png")
    height, width, _ = image.imread(tmp_path / "pictures" / "p.png").shape
    assert min(height, width) > 300


def test_a_comparison_says_which_are_impossible() -> None:
    text = plan("plan --gpu a100-40gb --compare budget=0.01,55")
    assert "too little for" in text
    assert "150M" in text
    with pytest.raises(UserError, match="too little"):
        plan("plan --gpu a100-40gb --compare budget=0.01,0.02")
    with pytest.raises(UserError, match="is not understood; write budget=20,55,200"):
        plan("plan --gpu a100-40gb --compare money=3")


def test_json_and_the_recipe(tmp_path: Path) -> None:
    told = json.loads(plan("plan --gpu a100-40gb --gpus 2 --hours 5 --json --write my.yaml"))
    assert told["gpus"] == 2
    assert told["seconds"] == pytest.approx(5 * 3600, rel=0.02)
    recipe, _ = load_recipe(str(tmp_path / "my.yaml"))
    assert recipe.pretrain is not None
    assert recipe.pretrain.batch_size == told["batch_size"]
    several = json.loads(plan("plan --gpu a100-40gb --compare budget=0.01,55 --json"))
    assert "too little" in several[0]["refused"]
    assert several[1]["dollars"] < 55


def test_a_probe_takes_real_steps_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leveret.planning import probe
    from leveret.planning.speeds import read_speeds

    monkeypatch.setattr(probe, "WARM_STEPS", 1)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "name: small\ntokenizer: {kind: bpe, vocab_size: 300}\ndata: {sources: [{paths: [a.txt]}]}\n"
        "model: {depth: 1, hidden_size: 32, max_position_embeddings: 32}\n"
        "pretrain: {tokens: 100000, batch_size: 2, compile: false}\n"
    )
    monkeypatch.setattr(probe, "probe", lambda *given, real=probe.probe: real(*given, steps=3))
    told = json.loads(plan(f"plan --recipe {recipe} --probe --json"))
    assert told["mfu"] > 0
    assert told["mfu_source"].startswith("small")
    mine = read_speeds()[0]
    assert mine.ours
    assert told["tokens_per_second"] == pytest.approx(mine.tokens_per_second, rel=0.01)
    assert json.loads(plan(f"plan --recipe {recipe} --json"))["mfu"] == told["mfu"], "kept for later plans"
