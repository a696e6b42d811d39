"""A container with this program and the recipe; what it makes goes to a folder outside."""

from __future__ import annotations

import json
from pathlib import Path

from leveret.planning.launch.plan import Files, Launch, leveret_words, meeting, one_machine
from leveret.planning.launch.travel import PROGRAM, RUNS, Cargo, cargo, remote_words

BASE = "python:3.12-slim"
"""torch brings CUDA's libraries; the driver is the host's. build-essential: our kernels and torch.compile need it."""


def container_files(launch: Launch) -> Files:
    """The Dockerfile; building and running it."""
    one_machine(launch, "container")
    goods, tag = cargo(launch), launch.label
    run = ["docker", "run", "--rm", "--init", *["--gpus=all", "--ipc=host"] * (launch.gpus > 0)]
    run += [f"--env={name}" for name in launch.secrets]
    run += [f"--volume={Path.cwd()}/runs:{RUNS}"]
    run += [f"--volume={here}:{there}:ro" for there, here in goods.inputs.items()]
    texts = {"Dockerfile": dockerfile(launch, goods), "recipe.yaml": goods.recipe}
    return Files(texts, [["docker", "build", f"--tag={tag}", "."], [*run, tag]], goods.trees)


def dockerfile(launch: Launch, goods: Cargo) -> str:
    """What the container holds. No entry point: Modal brings its own."""
    command = leveret_words(launch, "python", remote_words(launch), meeting(launch, ""))
    lines = [
        f"FROM {BASE}",
        "RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git \\",
        "    && rm -rf /var/lib/apt/lists/*",
        *[f"COPY leveret {PROGRAM}"] * bool(goods.trees),
        f"RUN pip install --no-cache-dir {goods.program}",
        f"ENV LEVERET_CACHE={RUNS}/cache PYTHONUNBUFFERED=1",
        "WORKDIR /work",
        "COPY recipe.yaml recipe.yaml",
        f"CMD {json.dumps(command)}",
        "",
    ]
    return "\n".join(lines)
