"""One tiny run, from a folder of texts to a model that answers, and all that can be done with it."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_project import ANSWER, Command, TinyRun, write_project

import leveret as package
from leveret.errors import UserError
from leveret.training.metrics import read_metrics

ASKED = "make the file of omega31"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def stages_said(stderr: str) -> dict[str, str]:
    """What a run said first of each stage."""
    said: dict[str, str] = {}
    for line in stderr.splitlines():
        stage, colon, text = line.partition(": ")
        if colon:
            said.setdefault(stage, text)
    return said


@pytest.fixture
def copy(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """The tiny run and its project, moved to where a test may change them."""
    shutil.copytree(tiny.project, tmp_path / "own")
    shutil.copytree(tiny.path, tmp_path / "runs" / "tiny")
    return TinyRun(tmp_path / "own", tmp_path / "runs" / "tiny", "", "")


# --- what a run leaves ---------------------------------------------------------------------------------------


def test_a_run_leaves_the_files_that_the_design_promises(tiny: TinyRun) -> None:
    whole = ["recipe.yaml", "environment.json", "state.json", "data.json", "audit.json", "report.md"]
    for name in [*whole, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]:
        assert (tiny.path / name).stat().st_size > 0, name
    for stage, last in (("pretrain", "step-00000020"), ("finetune", "step-00000060")):
        folder = tiny.path / stage
        for name in ("metrics.jsonl", "metrics.csv", "summary.json", "samples.md", "checkpoints/latest"):
            assert (folder / name).stat().st_size > 0, f"{stage}/{name}"
        assert {path.name for path in (folder / "plots").iterdir()} == {"loss.png", "loss-zoomed.png", "rates.png"}
        assert (folder / "checkpoints" / "latest").read_text().strip() == last
        files = {path.name for path in (folder / "checkpoints" / last).iterdir()}
        assert files == {
            "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "recipe.yaml",
            "manifest.json",
        }  # fmt: skip
        kept = (folder / "checkpoints" / last / "recipe.yaml").read_text()
        assert kept == (tiny.path / "recipe.yaml").read_text()
    assert not list(tiny.path.rglob("*.partial"))
    for name in ("state.json", "audit.json", "pretrain/summary.json", "finetune/evaluation/results.json"):
        assert read(tiny.path / name)["format_version"] == 1, name


def test_metrics_are_the_same_in_json_and_csv_and_fall(tiny: TinyRun) -> None:
    rows = [json.loads(line) for line in (tiny.path / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == [1, 5, 10, 15, 20]
    assert losses[20] < losses[1] - 0.5
    assert [row["step"] for row in rows if "validation_loss" in row and "validation_bits_per_byte" in row] == [10, 20]
    answers = (tiny.path / "finetune" / "metrics.jsonl").read_text()
    assert "validation_loss" in answers
    assert "bits_per_byte" not in answers  # only some of its tokens are learnt from
    with (tiny.path / "pretrain" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(int(row["step"]), row["loss"]) for row in table] == [
        (row["step"], str(row.get("loss", ""))) for row in rows
    ]


def test_the_summary_counts_what_was_trained(tiny: TinyRun) -> None:
    summary = read(tiny.path / "pretrain" / "summary.json")
    assert summary["steps"] == 20
    assert summary["tokens"] == 20 * 4 * 64
    assert summary["tokens_per_second"] > 0
    assert summary["mfu"] > 0
    assert summary["peak_memory_bytes"] is None or summary["peak_memory_bytes"] > 10_000_000


def test_the_recipe_in_a_run_is_resolved_and_means_the_same_elsewhere(tiny: TinyRun) -> None:
    recipe = yaml.safe_load((tiny.path / "recipe.yaml").read_text())
    assert recipe["finetune"]["optimizer"]["betas"] == [0.9, 0.95]
    assert recipe["data"]["sources"][0]["paths"][0] == str(tiny.project / "texts" / "corpus.jsonl")


def test_shards_kept_in_the_run_are_named_relative_to_it(tiny: TinyRun) -> None:
    places = read(tiny.path / "data.json")
    assert set(places) == {"pretrain", "finetune"}
    for place in places.values():
        assert not Path(place).is_absolute()
        manifest = read(tiny.path / place / "manifest.json")
        assert set(manifest["splits"]) == {"train", "validation"}
        assert manifest["dtype"] == "uint16"


def test_the_audit_and_the_evaluation_are_in_the_report(tiny: TinyRun) -> None:
    assert read(tiny.path / "audit.json")["leaks"] == {"examples": [], "corpus": []}
    results = read(tiny.path / "finetune" / "evaluation" / "results.json")
    held = results["sets"]["held"]
    assert (held["examples"], held["correct"]) == (16, 16)
    assert held["interval_95"][0] > 0.7
    assert results["loss"]["tokens"] > 0
    rows = (tiny.path / "finetune" / "evaluation" / "held.jsonl").read_text().splitlines()
    assert len(rows) == 16
    report = (tiny.path / "report.md").read_text()
    assert "| held | 16 | 16 | 100.0% |" in report
    assert "| leaks | passed | 16 held-out examples against 240 training examples and the corpus: none leak" in report
    for picture in ("pretrain/plots/loss.png", "finetune/plots/rates.png"):
        assert f"({picture})" in report
    for stage, raw, between in (("pretrain", True, ""), ("finetune", False, "\n")):
        model = package.load(f"{tiny.path}/{stage}", device="cpu")
        said = model.generate("To show", raw=raw, temperature=0.0, max_new_tokens=48)
        assert (tiny.path / stage / "samples.md").read_text().endswith(f"```text\nTo show{between}{said}\n```\n\n")


def test_the_report_says_what_was_spent_where_that_is_known(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    assert "| cost |" not in (copy.path / "report.md").read_text()
    path = copy.path / "finetune" / "summary.json"
    path.write_text(json.dumps(read(path) | {"cost": 1.5, "energy_kwh": None}))
    leveret("run", copy.recipe, "--run-dir", copy.path, "--copy-data", cwd=tmp_path)
    report = (copy.path / "report.md").read_text()
    assert "| validation loss | cost |" in report
    assert "| $1.50 |" in report


def test_a_run_ends_with_the_figures_and_what_to_try(tiny: TinyRun) -> None:
    assert "100.0% exact of    16" in tiny.stdout
    assert "runs/tiny/report.md" in tiny.stdout
    assert "leveret shell --model runs/tiny" in tiny.stdout
    assert "audit: 16 held-out examples against 240 training examples" in tiny.stderr


# --- doing it again ------------------------------------------------------------------------------------------


def test_a_second_call_does_nothing_again(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    before = (copy.path / "state.json").read_text()
    done = leveret("run", copy.recipe, "--run-dir", copy.path, "--copy-data", cwd=tmp_path)
    stages = ("tokenizer", "prepare", "audit", "pretrain", "finetune", "evaluate")
    assert {stage: stages_said(done.stderr)[stage] for stage in stages} == dict.fromkeys(stages, "already done")
    assert (copy.path / "state.json").read_text() == before
    assert "100.0% exact of    16" in done.stdout


def test_a_changed_key_makes_stale_what_it_decides_and_nothing_else(
    copy: TinyRun, leveret: Command, tmp_path: Path
) -> None:
    def run(*overrides: str) -> dict[str, str]:
        done = leveret("run", copy.recipe, *overrides, "--run-dir", copy.path, "--copy-data", cwd=tmp_path)
        return {stage: text for stage, text in stages_said(done.stderr).items() if text != "already done"}

    said = run("pretrain.log_every=7", "evaluate.max_new_tokens=12")
    assert said.keys() == {"evaluate", "report"}
    assert said["evaluate"] == "stale, because evaluate's recipe changed; doing it again"

    with (copy.project / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "do it", "command": ANSWER}) + "\n")
    said = run("evaluate.max_new_tokens=12")
    assert said.keys() == {"prepare", "audit", "finetune", "evaluate", "report"}
    assert said["prepare"] == "stale, because the examples changed; doing it again"
    assert said["audit"] == "stale, because the data or the held-out sets changed; doing it again"
    assert said["finetune"] == "stale, because the examples changed; doing it again"
    assert said["evaluate"] == "stale, because the model changed; doing it again"
    assert (copy.path / "finetune.stale" / "summary.json").is_file()


def test_a_held_out_example_among_the_training_examples_stops_the_run(leveret: Command, tmp_path: Path) -> None:
    recipe = write_project(tmp_path / "own")
    leaked = {"instruction": "make the file of alpha3", "command": ANSWER}
    with (tmp_path / "own" / "held.jsonl").open("a") as file:
        file.write(json.dumps(leaked) + "\n")
    done = leveret("run", recipe, "--run-dir", "leaky", cwd=tmp_path, exit_code=2)
    assert done.stderr.splitlines()[-1] == (
        "leveret: 1 held-out examples leak into the examples (1 verbatim; --drop-leaks leaves such examples out); "
        "leaky/audit.json names them"
    )
    (leak,) = read(tmp_path / "leaky" / "audit.json")["leaks"]["examples"]
    assert (leak["set"], leak["instruction"], leak["kind"]) == ("held", leaked["instruction"], "verbatim")
    assert not (tmp_path / "leaky" / "pretrain").exists()


# --- asking the model ----------------------------------------------------------------------------------------


def test_generate_answers_through_the_chat_template(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    assert leveret("generate", tiny.path, ASKED, cwd=tmp_path).stdout == f"{ANSWER}\n"


def test_a_seed_makes_drawn_answers_repeat(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    sampling = ["--raw", "-n", "2", "--temperature", "10", "--max-new-tokens", "12", "--seed", "1"]
    printed = leveret("generate", tiny.path, "To show", *sampling, cwd=tmp_path).stdout

    def draw(seed: int) -> list[str]:
        model = package.load(str(tiny.path), device="cpu")
        drawn = model.complete(["To show"] * 2, raw=True, temperature=10, max_new_tokens=12, seed=seed)
        return [completion.text for completion in drawn]

    first, second = draw(1)
    assert printed == f"[1] To show{first}\n[2] To show{second}\n"
    assert first != second
    assert draw(2) != [first, second]


def test_shell_prints_the_command_alone(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    done = leveret("shell", ASKED, "--model", tiny.path, cwd=tmp_path)
    assert done.stdout == f"{ANSWER}\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_shell_run_does_nothing_without_an_answer(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    done = leveret("shell", ASKED, "--model", tiny.path, "--run", cwd=tmp_path, typed="", exit_code=1)
    assert (done.stdout, done.stderr) == (f"{ANSWER}\n", "run it? [y/N] ")
    assert list(tmp_path.iterdir()) == []


def test_shell_run_asks_and_obeys(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    def made_after(typed: str, cwd: Path) -> list[str]:
        cwd.mkdir()
        done = leveret("shell", "--model", tiny.path, "--run", cwd=cwd, typed=f"{ASKED}\n{typed}\n\n{ASKED}\nno\n")
        assert done.stdout == f"{ANSWER}\n" * 2
        assert done.stderr == "run it? [y/N] " * 2
        return [path.name for path in cwd.iterdir()]

    assert made_after("n", tmp_path / "no") == []
    assert made_after("y", tmp_path / "yes") == ["made.txt"]


def test_chat_takes_lines_from_a_pipe(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    done = leveret("chat", tiny.path, "--max-new-tokens", "16", cwd=tmp_path, typed=f"{ASKED}\n/reset\n{ASKED}\n")
    assert done.stdout == f"{ANSWER}\n" * 2


def test_bench_times_as_many_tokens_as_asked(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    sizes = ["--prompt-tokens", "4", "--new-tokens", "8", "--repeat", "1", "--quantize", "int8"]
    figures = json.loads(leveret("bench", tiny.path, *sizes, cwd=tmp_path).stdout)
    assert (figures["prompt_tokens"], figures["new_tokens"], figures["weights"]) == (4, 8, "int8")
    assert figures["tokens_per_second"] > 0


def test_a_model_answers_from_python(tiny: TinyRun) -> None:
    model = package.load(str(tiny.path), device="cpu")
    assert model.generate(ASKED) == ANSWER
    assert "".join(model.stream(ASKED)) == ANSWER
    assert [done.text for done in model.complete([ASKED, "make the file of beta30"])] == [ANSWER] * 2
    assert "".join(model.chat([{"role": "user", "content": ASKED}])) == ANSWER
    with pytest.raises(UserError, match="temperature"):
        model.generate(ASKED, temperature=-1)


# --- measuring it again --------------------------------------------------------------------------------------


def test_a_look_at_a_few_examples_leaves_the_whole_figures_alone(
    copy: TinyRun, leveret: Command, tmp_path: Path
) -> None:
    kept = (copy.path / "finetune" / "evaluation" / "results.json").read_text()
    results = json.loads(leveret("evaluate", copy.path, "--limit", "3", cwd=tmp_path).stdout)
    assert results["sets"]["held"]["examples"] == 3
    assert results["protocol"]["limit"] == 3
    assert (copy.path / "finetune" / "evaluation" / "results.json").read_text() == kept


def test_a_run_is_found_by_its_name_at_a_stage_and_step(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    results = json.loads(leveret("evaluate", "tiny/pretrain@10", cwd=tmp_path).stdout)
    assert (results["stage"], results["step"]) == ("pretrain", 10)
    rows = [json.loads(line) for line in (copy.path / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    (then,) = [row["validation_loss"] for row in rows if row["step"] == 10 and "validation_loss" in row]
    assert results["loss"]["loss"] == pytest.approx(then, rel=0.02)
    assert results["loss"]["bits_per_byte"] > 0
    assert not (copy.path / "pretrain" / "evaluation").exists()


def test_examples_of_ones_own_are_matched_and_written_out(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("Instruction: make the file of alpha30\nmake the file of beta31\n")
    (tmp_path / "gold.txt").write_text(f"{ANSWER.replace(' ', '  ')}\ntouch other.txt\n")
    arguments = ["--examples", "asked.txt,gold.txt", "--output", "rows.jsonl"]
    results = json.loads(leveret("evaluate", tiny.path, *arguments, cwd=tmp_path).stdout)
    assert (results["sets"]["examples"]["examples"], results["sets"]["examples"]["correct"]) == (2, 1)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False]
    assert {row["set"] for row in rows} == {"examples"}


def test_a_run_with_its_shards_moves_elsewhere_and_evaluates(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    kept = read(copy.path / "finetune" / "evaluation" / "results.json")
    moved = tmp_path / "moved"
    copy.path.rename(moved)
    (moved / "finetune" / "evaluation" / "results.json").unlink()
    results = json.loads(leveret("evaluate", moved, cwd=tmp_path, LEVERET_CACHE=str(tmp_path / "none")).stdout)
    assert results == kept
    assert read(moved / "finetune" / "evaluation" / "results.json") == kept
    assert not (tmp_path / "none" / "shards").exists()


def test_finetuning_another_runs_base_model_makes_a_new_run(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    source = f"{tiny.path}/pretrain@10"
    leveret("finetune", "finetune.steps=4", "--from", source, "--run-dir", "second", cwd=tmp_path)
    second = tmp_path / "second"
    stages = read(second / "state.json")["stages"]
    assert "pretrain" not in stages
    base = read(tiny.path / "pretrain" / "checkpoints" / "step-00000010" / "manifest.json")["files"]
    assert stages["finetune"]["inputs"]["the base model"] == base["model.safetensors"]
    assert read(second / "finetune" / "summary.json")["steps"] == 4
    assert set(read(second / "data.json")) == {"finetune"}
    same = (second / "tokenizer" / "tokenizer.json").read_bytes()
    assert same == (tiny.path / "tokenizer" / "tokenizer.json").read_bytes()
    model = package.load(str(second), device="cpu")
    assert (model.stage, model.step) == ("finetune", 4)


def test_a_recipe_without_pretraining_tunes_from_nothing(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    recipe = tiny.path / "recipe.yaml"
    leveret("run", recipe, "pretrain=null", "finetune.steps=4", "--run-dir", "tuned", cwd=tmp_path)
    stages = read(tmp_path / "tuned" / "state.json")["stages"]
    assert "pretrain" not in stages
    assert "the model" in stages["finetune"]["inputs"]
    assert set(read(tmp_path / "tuned" / "data.json")) == {"finetune"}
    assert package.load(str(tmp_path / "tuned"), device="cpu").stage == "finetune"
    described = leveret("describe", recipe, "pretrain=null", "finetune.steps=4", cwd=tmp_path).stdout
    assert re.search(r"^finetune +4 steps", described, re.MULTILINE)


def test_a_recipe_that_trains_nothing_is_refused(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    arguments = ["describe", tiny.path / "recipe.yaml", "pretrain=null", "finetune=null"]
    assert "nothing is trained; give one of pretrain" in leveret(*arguments, cwd=tmp_path, exit_code=2).stderr


def test_going_on_with_another_runs_pretraining(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    leveret("pretrain", "pretrain.steps=4", "model.hidden_size=64", "--from", f"{tiny.path}/pretrain", cwd=tmp_path)
    made = tmp_path / "runs" / f"{tiny.path.name}-continued"
    assert read(made / "state.json")["stages"]["pretrain"]["inputs"].keys() >= {"the base model", "the data"}
    first = next(row for row in read_metrics(made / "pretrain") if "loss" in row)
    before = next(row for row in read_metrics(tiny.path / "pretrain") if "loss" in row)
    assert first["loss"] < before["loss"] - 0.5, "it goes on from what was learnt"
    assert package.load(str(made), device="cpu").engine.model.config.hidden_size == 32, "the shape is the base's"


def test_paths_beside_another_runs_recipe_start_from_here(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text((tiny.project / "pairs.jsonl").read_text())
    given = ["finetune.examples=[{paths: [own.jsonl]}]", "finetune.steps=2"]
    leveret("finetune", *given, "--from", f"{tiny.path}/pretrain", "--run-dir", "own", cwd=tmp_path)
    recipe = yaml.safe_load((tmp_path / "own" / "recipe.yaml").read_text())
    assert recipe["finetune"]["examples"][0]["paths"] == [str(tmp_path / "own.jsonl")]


# --- its parts -----------------------------------------------------------------------------------------------


def test_tokenizer_show_tells_special_tokens_and_cuts_a_text(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    told = leveret("tokenizer", "show", tiny.path, cwd=tmp_path).stdout
    assert told.splitlines()[0].split() == ["entries", "320"]
    assert "3  <command>" in told
    cut = leveret("tokenizer", "show", tiny.path / "tokenizer", "touch <eos> ü", cwd=tmp_path).stdout.splitlines()
    pieces = [line.split(maxsplit=1) for line in cut[:-1]]
    assert all(int(number) > 3 for number, _ in pieces)
    assert cut[-1].startswith(f"{len(pieces)} tokens, ")


def test_verify_finds_one_flipped_bit(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    folder = copy.path / read(copy.path / "data.json")["pretrain"]
    assert leveret("data", "verify", folder, cwd=tmp_path).stdout == "0 files differ\n"
    shard = folder / "train-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    done = leveret("data", "verify", folder, cwd=tmp_path, exit_code=1)
    assert done.stdout.splitlines() == [f"differs from its hash: {shard}", "1 files differ"]


def test_shards_of_another_tokenizer_are_refused(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    path = copy.path / "tokenizer" / "tokenizer.json"
    definition = read(path)
    definition["model"]["merges"].reverse()
    path.write_text(json.dumps(definition))
    (line,) = leveret("evaluate", copy.path, "--limit", "1", cwd=tmp_path, exit_code=2).stderr.splitlines()[-1:]
    assert line.startswith("leveret: the shards in ")
    assert "were made with another tokenizer" in line
    assert line.endswith("prepare the data again")


def test_a_checkpoint_that_is_not_there_is_told(copy: TinyRun, leveret: Command, tmp_path: Path) -> None:
    said = leveret("generate", "runs/tiny@7", "x", cwd=tmp_path, exit_code=2).stderr
    assert said == "leveret: runs/tiny/finetune has no checkpoint of step 7\n"
    shutil.rmtree(copy.path / "finetune" / "checkpoints")
    with pytest.raises(UserError, match=r"finetune has no checkpoint$"):
        package.load(str(copy.path))


def test_a_recipe_that_no_longer_fits_the_weights_is_told(copy: TinyRun) -> None:
    recipe = copy.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("hidden_size: 32", "hidden_size: 64"))
    with pytest.raises(UserError, match=r"step-00000060 does not fit .*recipe\.yaml"):
        package.load(str(copy.path))
