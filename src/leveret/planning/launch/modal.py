"""A Modal app: one function with a GPU, a volume for what it makes, and retries that go on from there.

Untried on Modal; imported with the modal package in tests/planning/test_launch_files.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from leveret.errors import UserError
from leveret.planning.launch.container import dockerfile
from leveret.planning.launch.plan import Files, Launch, leveret_words, meeting, one_machine
from leveret.planning.launch.travel import RUNS, cargo, remote_words

GPUS = {"a100": "A100-40GB", "a100-pcie-40gb": "A100-40GB", "a100-pcie-80gb": "A100-80GB", "h100-pcie": "H100"}
"""Modal's names of GPUs, where they are not ours in capitals."""

APP = '''\
"""Trains {name} on Modal. `modal run --detach modal_app.py` begins, and goes on from the volume if given again."""

import subprocess
from pathlib import Path

import modal

HERE = Path(__file__).parent
COMMAND = {command}

image = modal.Image.from_dockerfile(HERE / "Dockerfile", context_dir=HERE){inputs}
runs = modal.Volume.from_name("{label}", create_if_missing=True)
app = modal.App("{label}")


@app.function(
    image=image,
    gpu="{gpu}",
    volumes={{"{place}": runs}},
    secrets=[{secrets}],
    timeout={timeout},
    retries=modal.Retries(max_retries={retries}, initial_delay=0.0),
    single_use_containers=True,
)
def train():
    work = subprocess.Popen(COMMAND)
    try:
        work.wait()
    finally:  # where Modal takes the machine away, the run saves now and the next machine goes on
        work.terminate()
        code = work.wait()
        runs.commit()
    if code:
        raise RuntimeError(f"leveret left with exit code {{code}}")


@app.local_entrypoint()
def main():
    train.remote()
'''
TIMEOUT = 24 * 3600
"""Seconds that a function may run, Modal's most; the next try goes on."""
RETRIES = 10


def modal_files(launch: Launch) -> Files:
    """The app, the Dockerfile of its image, the recipe and this program.

    Raises:
        UserError: nobody said which GPU, or several machines are wanted.
    """
    one_machine(launch, "modal")
    if not launch.gpu:
        raise UserError("say which GPU to rent with --gpu, such as --gpu A100-40GB")
    goods, gpu = cargo(launch), GPUS.get(launch.gpu.lower(), launch.gpu.upper())
    command = leveret_words(launch, "python", remote_words(launch), meeting(launch, ""))
    inputs = "".join(
        f"\nimage = image.add_local_{'dir' if Path(here).is_dir() else 'file'}({json.dumps(here)}, {json.dumps(there)})"
        for there, here in goods.inputs.items()
    )
    app = APP.format(
        name=launch.name,
        label=launch.label,
        command=json.dumps(command),
        inputs=inputs,
        gpu=f"{gpu}:{launch.gpus}" if launch.gpus > 1 else gpu,
        place=RUNS,
        secrets=f"modal.Secret.from_local_environ({json.dumps(launch.secrets)})" if launch.secrets else "",
        timeout=TIMEOUT,
        retries=RETRIES,
    )
    texts = {"modal_app.py": app, "Dockerfile": dockerfile(launch, goods), "recipe.yaml": goods.recipe}
    return Files(texts, [["modal", "run", "--detach", "modal_app.py"]], goods.trees)
