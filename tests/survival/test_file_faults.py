"""Every file operation of a save goes wrong once, in every way: there is always a whole checkpoint to go on from."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes file operations fail."""
    made = tmp_path_factory.mktemp("shim") / "filefaults.so"
    source = HERE / "filefaults.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc are Linux's")
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_save_survives_each_of_its_file_operations_going_wrong(
    shim: Path, environment: Mapping[str, str], every: int
) -> None:
    memory = Path("/dev/shm")  # where a flush takes no time; what a flush that fails leads to is the same
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        command = [sys.executable, str(HERE / "saves_under_faults.py"), scratch, str(every)]
        variables = {**environment, "LD_PRELOAD": str(shim)}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("wrong") == []
    print(json.dumps(report, indent=1))
    for counted in report["operations"].values():
        assert counted["write"] >= 6
        assert counted["fsync"] >= counted["write"]
        assert counted["rename"] >= 2
