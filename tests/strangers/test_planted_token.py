"""A hub token in the environment is in no log, run directory, card, export or process list."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tiny_project import write_project

TOKEN = "hf_" + "PlantedCanary" * 2
PLACES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
SHORT = ["pretrain.steps=2", "finetune=null", "evaluate.sets={}"]


class Watch:
    """Looks at the command lines of all processes until it is stopped."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.25):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


def files_with(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_planted_token_is_nowhere(environment: Mapping[str, str], tmp_path: Path) -> None:
    assert Path("/proc/self/cmdline").exists(), "this test reads all command lines in /proc, which is Linux's"
    write_project(tmp_path)
    planted = dict(environment) | dict.fromkeys(PLACES, TOKEN) | {"LEVERET_CACHE": str(tmp_path / "cache")}
    verbs = [
        (["run", "tiny.yaml", "--run-dir", "own", "--copy-data", *SHORT], 0),
        (["export", "hf", "own", "exported"], 0),
        (["publish", "own", "someone/tiny"], 2),  # there is no way to the hub: it fails, and says so
        (["import", "hf", "someone/none", "--run-dir", "imported"], 2),
    ]
    said = []
    with Watch() as watch:
        for arguments, code in verbs:
            command = [sys.executable, "-m", "leveret", *arguments]
            done = subprocess.run(command, cwd=tmp_path, env=planted, capture_output=True, timeout=200, check=False)
            assert done.returncode == code, done.stderr.decode()
            said += [done.stdout, done.stderr]
    assert (tmp_path / "own" / "report.md").exists()
    assert (tmp_path / "exported" / "README.md").exists()
    assert any(b"leveret" in command for command in watch.seen)
    assert not any(TOKEN.encode() in command for command in watch.seen)
    assert not any(TOKEN.encode() in text for text in said)
    assert files_with(tmp_path) == []
    assert os.environ.get("HF_TOKEN") != TOKEN
