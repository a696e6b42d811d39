"""A job of Slurm that saves before its time is up, queues itself again, and goes on."""

from __future__ import annotations

import shlex
from pathlib import Path

from leveret.errors import UserError
from leveret.planning.launch.plan import HERE, Files, Launch, meeting, torchrun_words

WARNING_SECONDS = 120
"""Before its time is up that Slurm warns a job."""


def slurm_files(launch: Launch) -> Files:
    """The job script. On pre-emption Slurm itself tells every rank, which saves, and queues the job again.

    Raises:
        UserError: nobody said how many processes a machine has.
    """
    if launch.gpus == 0:
        raise UserError("there is no GPU here to count; give --gpus, those of each machine")
    folder = Path.cwd()
    options = [
        f"job-name={launch.name}", f"nodes={launch.nodes}", "ntasks-per-node=1", f"gpus-per-node={launch.gpus}",
        f"signal=B:USR1@{WARNING_SECONDS}", "requeue", "open-mode=append", f"output={folder}/{launch.name}-%j.log",
    ]  # fmt: skip
    options += [f"time={launch.time}"] * (launch.time is not None) + launch.options
    words = torchrun_words(launch, HERE, launch.local_words, meeting(launch, "$head"))
    command = " ".join(word if "$head" in word else shlex.quote(word) for word in words)
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{option}" for option in options),
        "",
        f"cd {shlex.quote(str(folder))} || exit",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "again() {  # time is nearly up: every rank saves and leaves, and the job waits for its next turn",
        '  kill -TERM "$step"',
        '  wait "$step"',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "  exit",
        "}",
        "trap again USR1",
        f"srun --kill-on-bad-exit=1 {command} &",
        "step=$!",
        'wait "$step"',
        "",
    ]
    return Files({"job.sh": "\n".join(lines)}, [["sbatch", "job.sh"]])
