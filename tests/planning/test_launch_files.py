"""The launch files, read by the packages that they are for, in an environment of their own: minutes and 480 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import write_project
from typer.testing import CliRunner

from leveret.cli.app import app

pytestmark = pytest.mark.long
PACKAGES = ("skypilot==0.14.1", "modal==1.6.4", "dockerfile-parse==2.0.1")

SKY = """
import json, os, sys, sky, yaml
content = yaml.safe_load(open(sys.argv[1]))
task = sky.Task.from_yaml_config(content, secrets_overrides=[("HF_TOKEN", os.environ["HF_TOKEN"])])  # as --secret does
machine, = task.resources
bucket = task.storage_mounts["/runs"]
print(json.dumps({"spot": machine.use_spot, "gpus": machine.accelerators, "recovery": machine.job_recovery,
                  "bucket": bucket.name, "mode": bucket.mode.value, "secrets": list(task.secrets),
                  "mounts": task.file_mounts, "run": task.run, "setup": task.setup}))
"""
MODAL = """
import importlib.util, json, sys, modal
given = {}
decorate = modal.App.function
modal.App.function = lambda app, **options: given.update(options) or decorate(app, **options)
spec = importlib.util.spec_from_file_location("modal_app", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert isinstance(module.train, modal.Function) and isinstance(given["image"], modal.Image)
assert isinstance(given["retries"], modal.Retries) and isinstance(given["volumes"]["/runs"], modal.Volume)
print(json.dumps({"gpu": given["gpu"], "timeout": given["timeout"], "retries": given["retries"].max_retries,
                  "secrets": len(given["secrets"]), "functions": list(module.app.registered_functions)}))
"""
DOCKER = """
import json, sys
from dockerfile_parse import DockerfileParser
parser = DockerfileParser(sys.argv[1])
print(json.dumps({"base": parser.baseimage, "steps": [step["instruction"] for step in parser.structure],
                  "command": json.loads(parser.cmd), "cache": parser.envs["LEVERET_CACHE"]}))
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has their packages."""
    folder = tmp_path_factory.mktemp("theirs")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
    return folder / "bin" / "python"


def test_each_platforms_own_package_reads_what_is_written_for_it(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write_project(tmp_path / "own").parent
    text = (project / "tiny.yaml").read_text()
    (project / "tiny.yaml").write_text(text.replace("{paths: [texts/", "{kind: hub, name: a/b}, {paths: [texts/"))
    monkeypatch.chdir(project)
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    folder = project / "launch" / "tiny"

    def read(platform: str, gpu: list[str], program: str, file: Path) -> dict[str, object]:
        done = CliRunner().invoke(app, ["launch", "tiny.yaml", "--on", platform, *gpu])
        assert done.exit_code == 0, done.output
        home = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        read = subprocess.run(
            [theirs, "-c", program, file], cwd=folder, capture_output=True, text=True, check=True, env=home
        )
        return json.loads(read.stdout.splitlines()[-1])

    task = read("skypilot", ["--gpu", "a100-80gb", "--gpus", "2"], SKY, folder / "skypilot.yaml")
    assert (task["spot"], task["gpus"], task["mode"]) == (True, {"A100-80GB": 2}, "MOUNT_CACHED")
    assert task["recovery"] == {
        "strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3, "recover_on_exit_codes": [75]
    }  # fmt: skip
    assert task["secrets"] == ["HF_TOKEN"]
    assert set(task["mounts"]) > {"/opt/leveret", "/work/recipe.yaml", "/inputs/0/corpus.jsonl"}
    assert task["run"].endswith("--max-restarts=3 -m leveret run /work/recipe.yaml --run-dir /runs/tiny")
    function = read("modal", ["--gpu", "a100-40gb"], MODAL, folder / "modal_app.py")
    assert function == {"gpu": "A100-40GB", "timeout": 86400, "retries": 10, "secrets": 1, "functions": ["train"]}
    image = read("container", [], DOCKER, folder / "Dockerfile")
    assert image["base"] == "python:3.12-slim"
    assert image["steps"] == ["FROM", "RUN", "COPY", "RUN", "ENV", "WORKDIR", "COPY", "CMD"]
    assert image["command"][-4:] == ["run", "/work/recipe.yaml", "--run-dir", "/runs/tiny"]
    assert image["cache"] == "/runs/cache"
