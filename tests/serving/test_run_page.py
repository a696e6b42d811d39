"""The run page and what it is told, of runs in every state."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from browsing import Visit
from playwright.sync_api import Browser, expect
from tiny_project import write_project
from tiny_server import running

from leveret.rundir import RunDir, write_json
from leveret.serving.runview import POINTS, RunView, downsample, read_samples, without_places
from leveret.training.lock import Lock

PROSE = "<b>bold</b> & <script>window.hacked=1</script>"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run whose pretraining is written by hand: 1,000 steps, one of them no number, one a spike."""
    run = tmp_path / "by-hand"
    stage = run / "pretrain"
    stage.mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        f"name: by-hand\ndescription: '{PROSE}'\ndata: {{sources: [{{paths: [/home/someone/secret/corpus.txt]}}]}}\n"
    )
    rows = [
        {
            "step": step, "loss": 4.0 - step / 500, "lr": 1e-3, "grad_norm": 50.0 if step == 700 else 1.0,
            "tokens": 64 * step, "tokens_per_second": 1000.0 + step % 7, "train_seconds": 0.1 * step,
        }
        for step in range(1, 1001)
    ]  # fmt: skip
    rows[499]["loss"] = float("nan")
    rows += [
        {"step": step, "validation_loss": 4.2 - step / 500, "validation_bits_per_byte": 2.1 - step / 1000}
        for step in (500, 1000)
    ]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (stage / "events.jsonl").write_text(json.dumps({"time": "t", "kind": "spike", "step": 700}) + "\n")
    samples = [
        f"## Step {step}\n\n```text\nOnce {step}\n```\n\n```text\n```py\nx\n```\n{PROSE}\n```\n\n"
        for step in (500, 1000)
    ]
    (stage / "samples.md").write_text("".join(samples))
    results = {
        "stage": "pretrain", "step": 1000, "loss": {"loss": 2.2, "perplexity": 9.0, "tokens": 500},
        "sets": {"values": {"examples": 10, "correct": 9, "accuracy": 0.9, "interval_95": [0.6, 0.98]}},
    }  # fmt: skip
    write_json(stage / "evaluation" / "results.json", results)
    manifest = {
        "manifest_sha256": "f" * 64,
        "sources": [{"kind": "files", "files": [{"name": "corpus.txt"}], "licence": "CC0", "revision": "abc123"}],
        "documents": [{"read": 9, "filters": {"short": {"dropped": 2}}, "unreadable": {"count": 1}}],
        "duplicates": {"exact": 3},
        "splits": {"train": {"documents": 3, "tokens": 99, "sources": [{"source": 0, "documents": 3, "tokens": 99}]}},
    }
    write_json(run / "shards" / "manifest.json", manifest)
    write_json(run / "data.json", {"pretrain": "shards"})
    write_json(run / "audit.json", {"leaks": {"examples": [], "corpus": []}, "held_out": {"values": 10}})
    dir_ = RunDir(run)
    dir_.begin("pretrain", {})
    dir_.finish("pretrain", {}, 100.0)
    return run


def test_a_run_is_told_whole_and_as_json(trained: Path) -> None:
    with running(None, RunDir(trained)) as up:
        answer = httpx.get(up.url + "/api/run")
        again = httpx.get(up.url + "/api/run", headers={"If-None-Match": answer.headers["etag"]})
    found = answer.json()
    assert again.status_code == 304
    assert (found["name"], found["state"], found["stage"]) == ("by-hand", "finished", "pretrain")
    (stage,) = found["stages"]
    assert stage["curves"]["validation_loss"] == [[500, 3.2], [1000, 2.2]]
    assert [panel["points"] for panel in stage["panels"] if panel["label"] == "held-out bits per byte"] == [
        [[500, 1.6], [1000, 1.1]]
    ]
    assert len(stage["curves"]["loss"]) <= POINTS
    assert [
        value for panel in stage["panels"] if panel["key"] == "grad_norm" for _, value in panel["points"] if value > 1
    ] == [50.0]
    assert [(sample["step"], len(sample["texts"])) for sample in stage["samples"]] == [(500, 2), (1000, 2)]
    assert stage["samples"][0]["texts"] == ["Once 500", f"```py\nx\n```\n{PROSE}"]
    (data,) = found["data"]
    assert (data["sources"][0]["label"], data["sources"][0]["licence"]) == ("corpus.txt", "CC0")
    assert data["dropped"] == {"short": 2, "unreadable": 1, "exact duplicates": 3}
    assert "secret" not in answer.text
    assert "…/corpus.txt" in found["recipe"]


def test_the_tag_changes_with_the_metrics_and_with_who_is_at_work(trained: Path) -> None:
    view = RunView(trained, share=1e9)
    first, _ = view.read()
    with Lock(trained):
        second, found = view.read()
    assert found["state"] == "running"
    with (trained / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1001, "loss": 1.0, "lr": 1e-3}\n{"step": 1002, "lo')
    third, found = view.read()
    assert len({first, second, third}) == 3
    assert found["stages"][0]["curves"]["loss"][-1] == [1001, 1.0]
    assert view.read() == (third, found)


def test_reading_a_long_run_takes_a_small_share_of_the_time(trained: Path) -> None:
    view = RunView(trained, share=1e-9)
    before = view.read()
    (trained / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "lr": 1e-3}\n')
    assert view.read() is before


@pytest.mark.parametrize("damage", ["nothing", "half-written", "crashed", "empty"])
def test_a_run_in_any_state_is_told_as_far_as_it_goes(trained: Path, damage: str) -> None:
    if damage == "half-written":
        for path in trained.rglob("*.json"):
            path.write_text(path.read_text()[:20])
        (trained / "recipe.yaml").write_text("name: [")
        (trained / "pretrain" / "samples.md").write_bytes(b"## Step 5\n\n```text\n\xff half")
    elif damage == "crashed":
        RunDir(trained).begin("finetune", {})
        RunDir(trained).fail("finetune", RuntimeError("no room in /home/someone/secret/place for it"))
    elif damage == "empty":
        trained = trained / "nowhere"
    _, found = RunView(trained).read()
    json.dumps(found, allow_nan=False)
    if damage == "crashed":
        assert found["state"] == "failed"
        assert found["why"] == "RuntimeError: no room in …/place for it"
    assert [stage["step"] for stage in found["stages"]] == ([] if damage == "empty" else [1000])


def test_a_curve_is_thinned_without_its_spikes_and_its_ends() -> None:
    curve = [(step, 9.0 if step == 5000 else 1.0) for step in range(10_000)]
    thin = downsample(curve)
    assert len(thin) <= POINTS
    assert (thin[0], thin[-1]) == (curve[0], curve[-1])
    assert (5000, 9.0) in thin
    assert thin == sorted(thin)
    assert downsample(curve[:10]) == curve[:10]
    assert downsample([(1, 2.0), (2, float("inf"))]) == [(1, 2.0)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/mine/texts/a.txt", "…/a.txt"),
        ("hf://org/name/file and ~/notes/x", "hf://org/name/file and ~/notes/x"),
        ("pattern: a/b/c", "pattern: a/b/c"),
        ("it's at '/root/x/y'", "it's at '…/y'"),
    ],
)
def test_only_absolute_places_are_cut(text: str, shown: str) -> None:
    assert without_places(text) == shown


def test_no_samples_are_no_error(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "samples.md") == []


@pytest.fixture
def visit(browser: Browser, trained: Path) -> Iterator[Visit]:
    with running(None, RunDir(trained)) as up:
        visit = Visit(browser, up.url, "/run")
        yield visit
        assert (visit.errors, visit.elsewhere, visit.violations) == ([], [], [])
        visit.context.close()


def test_a_run_is_shown_with_its_curves_read_out_by_pointer_and_by_keys(visit: Visit) -> None:
    page = visit.page
    chart = page.locator("figure").first
    ends = containing("held-out: 3.2 at step 500, 2.2 at step 1000")
    expect(chart.locator("svg")).to_have_attribute("aria-label", ends)
    expect(page.locator(".chip")).to_have_text("finished")
    assert chart.locator("path.mark.spike").count() == 1
    assert page.locator("figure").count() == 5  # loss, bits per byte, learning rate, gradient norm, tokens/s
    box = chart.locator("svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    expect(chart.locator(".says")).to_contain_text("step ")
    page.mouse.move(0, 0)
    expect(chart.locator(".says")).not_to_contain_text("step ")
    chart.locator("svg").focus()
    page.keyboard.press("End")
    expect(chart.locator(".says")).to_contain_text("step 1,000")
    page.keyboard.press("ArrowLeft")
    expect(chart.locator(".says")).not_to_contain_text("step 1,000")
    for text in ("90.0%", "60.0% to 98.0%", "CC0", "exact duplicates 3", "no held-out example leaks", "corpus.txt"):
        expect(page.locator("main")).to_contain_text(text)


def test_samples_are_text_and_are_chosen_by_step(visit: Visit) -> None:
    page = visit.page
    expect(page.locator(".samples pre").first).to_have_text("Once 1000")
    assert PROSE in page.locator(".samples pre").nth(1).inner_text()
    page.locator(".samples input").press("ArrowLeft")
    expect(page.locator(".samples pre").first).to_have_text("Once 500")
    assert page.evaluate("() => window.hacked") is None


def test_the_page_follows_a_training_from_before_its_first_step_to_its_end(
    browser: Browser, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    recipe = write_project(tmp_path / "own")
    run = tmp_path / "run"
    settings = [
        "pretrain.steps=120",
        "pretrain.log_every=1",
        "pretrain.eval_every=60",
        "finetune=null",
        "evaluate.sets={}",
    ]
    with running(None, RunDir(run)) as up:
        visit = Visit(browser, up.url, "/run")
        page = visit.page
        expect(page.locator(".chip")).to_have_text("not begun")
        expect(page.locator("#state")).to_contain_text("Nothing has been trained yet")
        command = [sys.executable, "-m", "leveret", "pretrain", str(recipe), *settings, "--run-dir", str(run)]
        training = subprocess.Popen(command, cwd=tmp_path, env=environment)
        try:
            rows = run / "pretrain" / "metrics.jsonl"
            up.wait(lambda: training.poll() is None and rows.is_file() and rows.read_bytes().count(b"\n") > 20, 120)
            training.send_signal(signal.SIGSTOP)  # however fast the machine, the page sees it half-way
            head = page.locator("[data-stage=pretrain] h2")
            expect(head).to_contain_text(containing(" of 120"), timeout=30_000)
            expect(page.locator(".chip")).to_have_text("running")
            label = page.locator("[data-stage=pretrain] figure svg").first.get_attribute("aria-label")
            assert label is not None
            assert "step 120," not in label
            training.send_signal(signal.SIGCONT)
            expect(page.locator(".chip")).to_have_text("finished", timeout=120_000)
            expect(head).to_contain_text("step 120 of 120")
            assert training.wait(120) == 0
        finally:
            training.kill()
            training.wait()
        newest = page.locator("[data-stage=pretrain] figure svg").first
        expect(newest).to_have_attribute("aria-label", containing("step 120"))
        assert (visit.errors, visit.elsewhere, visit.violations) == ([], [], [])
        visit.context.close()


def containing(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))
