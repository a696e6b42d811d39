"""A corpus with everything that can be wrong with it, prepared and looked at from the command line."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tiny_project import Command

PASSAGE = "the quick answer to which planet is closest to the sun is of course the small planet mercury"
RECIPE = {
    "name": "web",
    "tokenizer": {"kind": "bpe", "vocab_size": 320, "special_tokens": ["<eos>"], "eos_token": "<eos>"},
    "data": {
        "sources": [{"paths": ["texts/a.jsonl"], "weight": 3}, {"paths": ["texts/b.jsonl"], "weight": 1}],
        "validation_fraction": 0.05,
        "tokens": 20_000,
        "filters": [
            {"kind": "length", "least_words": 5}, {"kind": "pii"}, {"kind": "predicate", "path": "rules.py:keep"}
        ],
        "dedup": {"near": 0.8},
        "decontaminate": {"sets": ["bench.jsonl"]},
        "packing": "best-fit",
    },
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
              "max_position_embeddings": 64},
    "pretrain": {"steps": 3, "batch_size": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, leveret: Command) -> Path:
    folder = tmp_path_factory.mktemp("web")
    (folder / "texts").mkdir()
    rows = [f"number {n} of the first file, which tells of {n * 31 % 97} hares and {n % 7} foxes" for n in range(300)]
    rows += [
        rows[0],
        "too short",
        "a forbidden text about hares that nobody is meant to read",
        "ask ann@example.com or bob@example.com about the hares",
        "forbidden to call +44 20 7946 0958 about the hares",
    ]
    lines = [json.dumps({"text": text}) for text in rows]
    lines.insert(5, "{not json")
    (folder / "texts" / "a.jsonl").write_text("\n".join(lines) + "\n")
    other = [f"the second file has its own text, {n} times {n + 1} is {n * (n + 1)}, as you know" for n in range(200)]
    (folder / "texts" / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in [*other, f"Well, {PASSAGE}."]))
    (folder / "bench.jsonl").write_text(json.dumps({"query": PASSAGE, "choices": ["yes", "no"], "gold": 0}) + "\n")
    (folder / "rules.py").write_text("def keep(text):\n    return 'forbidden' not in text\n")
    (folder / "web.yaml").write_text(yaml.safe_dump(RECIPE))
    said = leveret("pretrain", "web.yaml", "--run-dir", "runs/web", cwd=folder).stderr
    assert "prepare: 506 documents read; left out: length 1, predicate 2, " in said
    return folder


def manifest(project: Path) -> dict:
    return json.loads(
        (Path(json.loads((project / "runs/web/data.json").read_text())["pretrain"]) / "manifest.json").read_text()
    )


def test_strict_stops_at_the_first_row_that_cannot_be_read(project: Path, leveret: Command) -> None:
    done = leveret("prepare", "web.yaml", "--run-dir", "strict", "--copy-data", "--strict", cwd=project, exit_code=2)
    assert "a.jsonl:6: " in done.stderr


def test_the_manifest_says_what_became_of_every_document(project: Path) -> None:
    facts = manifest(project)
    first, second = facts["documents"]
    assert first["read"] == 305
    assert first["unreadable"]["count"] == 1
    assert first["unreadable"]["first"][0]["where"].endswith("a.jsonl:6")
    assert {name: counts["dropped"] for name, counts in first["filters"].items()} == {
        "length": 1, "pii": 0, "predicate": 2, "decontamination": 0
    }  # fmt: skip
    assert first["filters"]["pii"] == {"dropped": 0, "changed": 2, "edits": {"email": 2, "phone": 1}}
    assert second["filters"]["decontamination"]["dropped"] == 1
    assert facts["duplicates"]["exact"] == 1
    assert first["kept"] + second["kept"] + sum(facts["duplicates"].values()) == 305 + 201 - 4


def test_the_mixture_draws_what_the_weights_say(project: Path) -> None:
    drawn = manifest(project)["drawn"]["train"]["drawn"]
    tokens = [source["tokens"] for source in drawn]
    assert sum(tokens) == pytest.approx(20_000, rel=0.02)
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.02)


def test_a_predicate_that_changed_makes_the_data_stale(project: Path, leveret: Command) -> None:
    before = (project / "rules.py").read_text()
    said = leveret("prepare", "web.yaml", "--run-dir", "runs/web", cwd=project).stderr
    assert "prepare: already done" in said
    (project / "rules.py").write_text(before + "\n# another rule\n")
    said = leveret("prepare", "web.yaml", "--run-dir", "runs/web", cwd=project).stderr
    assert "prepare: stale, because the data changed" in said
    (project / "rules.py").write_text(before)
    leveret("prepare", "web.yaml", "--run-dir", "runs/web", cwd=project)


def test_inspect_names_what_each_filter_drops(project: Path, leveret: Command) -> None:
    shown = leveret(
        "data", "inspect", "web.yaml", "data.sources.0.paths=[texts/b.jsonl]", "--html", "new/page.html", cwd=project
    )
    assert "predicate" in shown.stdout
    assert "page written: new/page.html" in shown.stdout
    assert "<svg" in (project / "new" / "page.html").read_text()


def test_shards_are_named_by_their_folder_or_their_run(project: Path, leveret: Command) -> None:
    assert "0 files differ" in leveret("data", "verify", "runs/web", cwd=project).stdout
    folder = json.loads((project / "runs/web/data.json").read_text())["pretrain"]
    assert "0 files differ" in leveret("data", "verify", folder, cwd=project).stdout
    for place, said in {
        "texts": "texts is no run, and holds no token shards: it has no manifest.json",
        "nowhere": "there is no run 'nowhere'",
        "runs/web/finetune": "runs/web/finetune has no data yet",
    }.items():
        assert said in leveret("data", "verify", place, cwd=project, exit_code=2).stderr


def test_sample_and_stats_show_the_shards(project: Path, leveret: Command) -> None:
    text = leveret("data", "sample", "runs/web", "-n", "2", cwd=project).stdout
    assert text.count("═══ window") == 2
    assert "next document" in text
    assert "of the first file" in text or "the second file" in text
    shown = leveret("data", "stats", "runs/web", "--plots", "pictures", cwd=project).stdout
    assert "bytes" in shown
    assert len(list((project / "pictures").glob("*.png"))) == 3


def test_the_audit_names_the_contaminated_set(project: Path, leveret: Command) -> None:
    asked = ["web.yaml", "data.sources.0.paths=[texts/b.jsonl]", "--set", "bench.jsonl", "--output", "found.json"]
    shown = leveret("audit", "contamination", *asked, cwd=project, exit_code=1).stdout
    assert "mercury" in shown
    assert json.loads((project / "found.json").read_text())["sets"]["bench"]["contaminated"] == 1
    (project / "own.jsonl").write_text(json.dumps({"body": PASSAGE}) + "\n")
    own = ["audit", "contamination", "web.yaml", "--set", "own.jsonl"]
    assert "or with --field: body" in leveret(*own, cwd=project, exit_code=2).stderr
    assert "own, example 1" in leveret(*own, "--field", "body", cwd=project, exit_code=1).stdout


def test_a_full_disk_is_named_and_leaves_nothing_half_done(
    project: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """On a disk of one megabyte of its own; where nobody may mount one, with files of at most one megabyte.

    Then there is room, and the same command goes on.
    """
    lines = (json.dumps({"text": " ".join(f"{n * k % 9973}" for k in range(1, 60))}) for n in range(20_000))
    (project / "large.jsonl").write_text("\n".join(lines))
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if subprocess.run([*unshare, mount], capture_output=True).returncode == 0:
        shell, narrow, wide, reason = unshare, mount, f"mount -o remount,size=200m {disk}", "No space left on device"
    else:
        shell, narrow, wide, reason = ["bash", "-c"], "ulimit -S -f 1024", "ulimit -S -f unlimited", "File too large"
    prepare = f"{sys.executable} -m leveret prepare web.yaml data.sources=[{{paths:[large.jsonl]}}] data.tokens=null"
    prepare += f" --run-dir {disk}/run"
    script = f"{narrow}; {prepare}; echo code $?; find {disk} -name '*.partial'; {wide}; {prepare}; echo code $?"
    done = subprocess.run(
        [*shell, script], cwd=project, env={**environment, "LEVERET_CACHE": str(disk / "cache")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "code 2\ncode 0\n", done.stderr
    assert f"cannot be written ({reason}); make room" in done.stderr
    assert "20,000 documents read" in done.stderr
    assert "Traceback" not in done.stderr
