"""A managed job of SkyPilot: a machine of the spot market, and another one when that is taken away.

Untried on a cloud; read by SkyPilot's own parser in tests/planning/test_launch_files.py. The bucket is mounted with a
cache (MOUNT_CACHED): without, nothing can be added to files there, as metrics are. What was not uploaded yet when a
machine is taken away is lost; a checkpoint that is not whole is passed over.
"""

from __future__ import annotations

import shlex

import yaml

from leveret.errors import UserError
from leveret.planning.launch.plan import Files, Launch, leveret_words, meeting, one_machine
from leveret.planning.launch.travel import PROGRAM, RUNS, cargo, remote_words
from leveret.training.pulse import LOST

GPUS = {
    "a100-40gb": "A100",
    "a100-pcie-40gb": "A100",
    "a100-pcie-80gb": "A100-80GB",
    "h100-pcie": "H100",
    "rtx-5090": "RTX5090",
    "rtx-4090": "RTX4090",
    "rtx-3090": "RTX3090",
}
"""SkyPilot's names of GPUs, where they are not ours in capitals."""
RESTARTS = 3


def skypilot_files(launch: Launch) -> Files:
    """The job, its recipe and this program.

    Raises:
        UserError: nobody said which GPU, or several machines are wanted.
    """
    one_machine(launch, "skypilot")
    if not launch.gpu:
        raise UserError("say which GPU to rent with --gpu, such as --gpu A100 (`sky show-gpus` lists them)")
    goods = cargo(launch)
    command = leveret_words(launch, "python", remote_words(launch), meeting(launch, ""))
    gpu = GPUS.get(launch.gpu.lower(), launch.gpu.upper())
    recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": RESTARTS, "recover_on_exit_codes": [LOST]}
    task = {
        "name": launch.name,
        "resources": {"accelerators": f"{gpu}:{launch.gpus or 1}", "use_spot": True, "job_recovery": recovery},
        "num_nodes": 1,
        "envs": {"LEVERET_CACHE": f"{RUNS}/cache", "PYTHONUNBUFFERED": "1"},
        **({"secrets": dict.fromkeys(launch.secrets)} if launch.secrets else {}),
        "file_mounts": {
            **({PROGRAM: "./leveret"} if goods.trees else {}),
            "/work/recipe.yaml": "./recipe.yaml",
            **goods.inputs,
            RUNS: {"name": launch.bucket, "mode": "MOUNT_CACHED"},
        },
        "setup": f"pip install {goods.program}",
        "run": shlex.join(command),
    }
    text = "# sky jobs launch skypilot.yaml: begins, and goes on from the bucket if it is given again.\n"
    texts = {"skypilot.yaml": text + yaml.safe_dump(task, sort_keys=False, width=1000), "recipe.yaml": goods.recipe}
    secrets = [word for name in launch.secrets for word in ("--secret", name)]
    return Files(texts, [["sky", "jobs", "launch", "--yes", *secrets, "skypilot.yaml"]], goods.trees)
