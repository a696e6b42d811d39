"""How the benchmarks are started here: as the scripts that they are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class Finished:
    """last: its last line. out, err: all that it said."""

    last: dict[str, Any]
    out: str
    err: str


@pytest.fixture
def script() -> Callable[..., Finished]:
    """Runs a benchmark by its name, with options, to its end."""

    def run(name: str, *options: str) -> Finished:
        done = subprocess.run(
            [sys.executable, str(FOLDER / f"{name}.py"), *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=True,
        )
        return Finished(json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr)

    return run
