"""The real command line, run as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import Command


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Shards in a folder of the tests' own, one thread, and no way to the network or to what it gave earlier."""
    scratch = tmp_path_factory.mktemp("environment")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return os.environ | nowhere | {
        "LEVERET_CACHE": str(scratch / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "hub"),
        "TIKTOKEN_CACHE_DIR": str(scratch / "tiktoken"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture(scope="session")
def leveret(environment: Mapping[str, str]) -> Command:
    """Runs `leveret ARGUMENTS` in a folder; checks its exit code and that no traceback is shown."""

    def run(
        *arguments: str | Path, cwd: Path, exit_code: int = 0, typed: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "leveret", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd, input=typed, capture_output=True, text=True, env={**environment, **variables}, timeout=300
        )
        assert done.returncode == exit_code, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr or "--debug" in arguments
        return done

    return run
