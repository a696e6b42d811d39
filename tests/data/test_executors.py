"""The same shards when datatrove's executors make the parts."""

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from leveret.data.config import DataConfig
from leveret.data.parts import Job
from leveret.data.prepare import prepare_documents
from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(5):
        texts = [f"file {number} row {row} says {row * 7 % 40} things" for row in range(300)]
        pq.write_table(pa.table({"text": texts + texts[:50]}), folder / f"{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(kind="bpe", vocab_size=300, special_tokens=["<eos>"], eos_token="<eos>")
    return train_tokenizer(config, ["file row says things 0123456789"])


def manifest(corpus: Path, tokenizer: Tokenizer, folder: Path, **settings: Any) -> str:
    fields = {"sources": [{"paths": [str(corpus)]}], "dedup": {"exact": True}, "workers": 1} | settings
    job, console = Job(tokenizer, DataConfig.model_validate(fields), corpus), Console(file=io.StringIO())
    prepare_documents(job, {}, 32, folder / "shards", {"tokenizer": tokenizer.content_hash}, console)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {"shards"}
    return (folder / "shards" / "manifest.json").read_text()


def test_the_local_executor_makes_the_same_shards(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    here = manifest(corpus, tokenizer, tmp_path / "here")
    assert '"exact": 250' in here
    there = manifest(corpus, tokenizer, tmp_path / "there", executor={"kind": "local", "tasks": 3, "workers": 2})
    assert there == here


SBATCH = """#!/bin/bash
cp "${@: -1}" "$(mktemp "$SUBMITTED/XXXXXX")"
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a scheduler of ours leaves the scripts that it was given, and runs none of them."""
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "submitted").mkdir()
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "submitted"


def test_slurm_is_given_the_tasks_and_the_same_command_merges(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, slurm: Path
) -> None:
    here = manifest(corpus, tokenizer, tmp_path / "here")
    executor = {"kind": "slurm", "tasks": 2, "memory_gb": 0.5, "time": "01:00:00"}
    with pytest.raises(UserError, match="5 of 5 pieces are not done yet"):
        manifest(corpus, tokenizer, tmp_path / "there", executor=executor)
    (script,) = (path for path in slurm.iterdir() if "launch_pickled_pipeline" in path.read_text())
    assert {"#SBATCH --mem-per-cpu=500M", "#SBATCH --time=01:00:00", "#SBATCH --array=0-1"} <= set(
        script.read_text().splitlines()
    )
    for task in range(2):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "localhost"}
        subprocess.run(["bash", script], env=environment, check=True, capture_output=True)
    assert manifest(corpus, tokenizer, tmp_path / "there", executor=executor) == here


def test_a_machine_without_slurm_is_said_in_a_line(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs Slurm's sbatch"):
        manifest(corpus, tokenizer, tmp_path / "there", executor={"kind": "slurm"})


@pytest.mark.long
def test_a_ray_cluster_of_two_workers_makes_the_same_shards(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    here = manifest(corpus, tokenizer, tmp_path / "here")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        executor = {"kind": "ray", "tasks": 4, "workers": 2, "address": cluster.address, "memory_gb": 0.5}
        assert manifest(corpus, tokenizer, tmp_path / "there", executor=executor) == here
    finally:
        ray.shutdown()
        cluster.shutdown()
