"""What the tests of commands that are run share."""

import pytest

from leveret.tasks.shell.sandbox import lack


@pytest.fixture(scope="session")
def sandbox() -> None:
    """A machine that allows the sandbox. Where none is, nothing of this is shown, so it fails."""
    assert lack() is None, lack()
