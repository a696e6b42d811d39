"""One tiny run that many tests look at."""

import pytest
from tiny_project import Command, TinyRun, write_project


@pytest.fixture(scope="session")
def tiny(leveret: Command, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Tests only look at it; one that changes something copies it first."""
    project = tmp_path_factory.mktemp("project") / "own"
    recipe = write_project(project)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = leveret("run", recipe, "--run-dir", "runs/tiny", "--copy-data", cwd=elsewhere)
    assert "100.0% exact" in done.stdout  # else its commands are not fit to be run
    return TinyRun(project, elsewhere / "runs" / "tiny", done.stdout, done.stderr)
