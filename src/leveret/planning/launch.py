"""Commands and job scripts that start a training on several devices, through torchrun."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

RESTARTS = 3
"""How often torchrun starts all ranks anew when one is lost; each time they go on from the newest checkpoint."""
PORT = 29500
WARNING_SECONDS = 120
"""Before its time is up that Slurm warns a job."""


@dataclass(frozen=True)
class Launch:
    """What is to be started where.

    words: of leveret's command line, the verb first. nodes: machines. gpus: processes on each. head: name of the first
    machine, where all find each other; not needed for one.
    """

    words: list[str]
    name: str
    nodes: int = 1
    gpus: int = 1
    head: str = ""

    def torchrun(self) -> list[str]:
        """The command, the same on every machine."""
        where = ["--standalone"]
        if self.nodes > 1:
            place = f"--rdzv-endpoint={self.head}:{PORT}"
            where = [f"--nnodes={self.nodes}", "--rdzv-backend=c10d", place, f"--rdzv-id={self.name}"]
        processes = [f"--nproc-per-node={self.gpus}", f"--max-restarts={RESTARTS}"]
        return [sys.executable, "-m", "torch.distributed.run", *where, *processes, "-m", "leveret", *self.words]

    def sbatch(self, time: str | None, more: list[str]) -> str:
        """A job script for Slurm. Warned shortly before its time is up, it saves and puts itself in the queue again.

        Args:
            time: the job's limit as Slurm has it; None: the partition's.
            more: further options of sbatch, such as "partition=gpu".
        """
        options = [f"job-name={self.name}", f"nodes={self.nodes}", "ntasks-per-node=1", f"gpus-per-node={self.gpus}"]
        options += [f"signal=B:USR1@{WARNING_SECONDS}", "requeue", "open-mode=append", f"output={self.name}-%j.log"]
        options += [f"time={time}"] * (time is not None) + more
        of_job = Launch(self.words, self.name, self.nodes, self.gpus, "$head")
        command = " ".join(word if "$head" in word else shlex.quote(word) for word in of_job.torchrun())
        return "\n".join(
            [
                "#!/bin/bash",
                *(f"#SBATCH --{option}" for option in options),
                "",
                f"cd {shlex.quote(str(Path.cwd()))}",
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
        )
