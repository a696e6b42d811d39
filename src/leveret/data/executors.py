"""Parts made beyond this machine: the same work as a datatrove pipeline, which brings the schedulers.

    places --rank, rank + tasks, ...--> make_piece --> parts in a shared folder; the merge stays where it was called

Every rank takes whole pieces, so a corpus wants at least as many files as there are tasks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from leveret.data.config import ExecutorConfig
from leveret.data.parts import Job, PartMaker
from leveret.data.prepare import Place, make_piece
from leveret.errors import UserError


@dataclass(frozen=True)
class MakeParts:
    """A step of a datatrove pipeline: this rank's share of the pieces."""

    job: Job
    places: list[Place]

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        maker = PartMaker(self.job)
        for place in self.places[rank::world_size]:
            make_piece(maker, place)
        yield from ()


def run_executor(config: ExecutorConfig, job: Job, places: list[Place], logs: str) -> None:
    """Makes the parts of all pieces with the executor that the recipe names. Slurm's returns once it has submitted.

    Raises:
        UserError: datatrove or its scheduler is not installed, or pieces are not done.
    """
    todo = [place for place in places if not place.done.is_file()]
    if not todo:
        return
    try:
        from datatrove import executor as datatrove
    except ImportError:
        raise UserError("data.executor needs datatrove; pip install 'leveret[cluster]'") from None
    shared: dict[str, Any] = {
        "pipeline": [MakeParts(job, todo)],
        "tasks": config.tasks,
        "logging_dir": logs,
        "skip_completed": False,  # what is done is known by the parts
    }
    if config.workers is not None:
        shared["workers"] = config.workers
    match config.kind:
        case "local":
            datatrove.LocalPipelineExecutor(**shared).run()
        case "slurm":
            _submit_to_slurm(config, shared)
        case "ray":
            _run_on_ray(config, shared)
    left = sum(not place.done.is_file() for place in todo)
    if left:
        raise UserError(
            f"{left} of {len(todo)} pieces are not done yet; when the tasks have ended ({logs} has their logs), "
            "the same command goes on"
        )


def _submit_to_slurm(config: ExecutorConfig, shared: dict[str, Any]) -> None:
    from datatrove.executor import SlurmPipelineExecutor

    activate = Path(sys.prefix) / "bin" / "activate"
    executor = SlurmPipelineExecutor(
        **shared,
        time=config.time,
        partition=config.partition,
        job_name="leveret-prepare",
        venv_path=str(activate) if activate.is_file() else None,
        sbatch_args={"mem-per-cpu": f"{math.ceil(1000 * config.memory_gb)}M"},  # sbatch takes whole numbers only
    )
    try:
        executor.run()
    except FileNotFoundError as error:
        raise UserError("data.executor.kind 'slurm' needs Slurm's sbatch on this machine") from error
    except CalledProcessError as error:
        raise UserError(f"Slurm did not take the tasks: sbatch left with exit code {error.returncode}") from error


def _run_on_ray(config: ExecutorConfig, shared: dict[str, Any]) -> None:
    try:
        import ray
    except ImportError:
        raise UserError("data.executor.kind 'ray' needs ray; pip install 'leveret[cluster]'") from None
    from datatrove.executor import RayPipelineExecutor

    ours = not ray.is_initialized()
    if ours:
        ray.init(address=config.address, log_to_driver=False, include_dashboard=False)
    try:
        RayPipelineExecutor(**shared, mem_per_cpu_gb=config.memory_gb).run()
    finally:
        if ours:
            ray.shutdown()
