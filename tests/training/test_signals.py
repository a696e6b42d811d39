"""Being asked to stop, at every place where a training may be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_training import figures, same, settings, trainer, weights
from torch import Tensor

from leveret.data.shards import TokenStore
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import steps_on_disk
from leveret.training.loop import train
from leveret.training.objective import NextToken
from leveret.training.signals import Interrupted, Leaving, Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_is_noted_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        os.kill(os.getpid(), number)  # at once after the first, as a launcher hands it on: the same one
    assert signal.getsignal(number) is before
    assert Interrupted(number, 7).exit_code == 128 + number
    assert str(Interrupted(number, 7)).startswith(f"stopped by {number.name} at step 7; ")


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGINT")])
def test_a_second_one_leaves_at_once(first: str, second: str) -> None:
    """Also where what the process does is not Python's: it sleeps here, again and again, as a signal that comes between
    Python's last look and a long sleep would be noticed after that sleep only."""
    code = (
        "import time\nfrom leveret.training import signals\nsignals.DOUBLED_SECONDS = 0.0\n"
        "with signals.Signals() as them:\n    print('ready', flush=True)\n"
        "    while not them.received: time.sleep(0.01)\n"
        "    print('noted', flush=True)\n    while True: time.sleep(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[first])
    assert process.stdout.readline() == "noted\n"
    begun = time.monotonic()
    process.send_signal(signal.Signals[second])
    assert process.wait(timeout=30) == -signal.Signals[second]
    assert time.monotonic() - begun < 20
    process.stdout.close()


def test_ranks_agree_on_the_largest() -> None:
    asked: list[int] = []
    ranks = SimpleNamespace(agree=lambda value: asked.append(value) or 15)
    with Signals() as signals:
        assert signals.agreed(ranks) == 15
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.agreed(ranks) == 15
    assert asked == [0, signal.SIGUSR1]


def test_items_end_when_a_signal_comes() -> None:
    with Signals() as signals:
        items = signals.heeded(range(9), SimpleNamespace(agree=lambda value: value))
        assert [next(items), next(items)] == [0, 1]
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Leaving):
            next(items)


class InValidation(NextToken):
    """Sends a signal from the n-th forward pass in which nothing is learnt."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def loss(self, model: Decoder, batch) -> Tensor:  # type: ignore[no-untyped-def]
        if not model.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
        return super().loss(model, batch)


@pytest.mark.parametrize("checkpoint_every", [4, 6])
def test_a_validation_is_left_early_and_made_when_the_run_goes_on(
    tmp_path: Path, store: TokenStore, checkpoint_every: int
) -> None:
    """Also where the step of the validation is none of a checkpoint."""
    config = settings(checkpoint_every=checkpoint_every, eval_batches=2)
    train(trainer(tmp_path / "undisturbed", store, config))
    run = trainer(tmp_path / "run", store, config, objective=InValidation(3))
    with pytest.raises(Interrupted, match="SIGUSR1 at step 8"):
        train(run)
    assert steps_on_disk(tmp_path / "run" / "checkpoints")[-1] == 8
    train(trainer(tmp_path / "run", store, config))
    assert figures(tmp_path / "run") == figures(tmp_path / "undisturbed")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "undisturbed"))


def test_a_signal_before_the_first_step_takes_none(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it comes while the model is compiled: nothing has been trained that could be lost."""
    from leveret.training import loop

    monkeypatch.setattr(loop, "settle", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM at step 0"):
        train(trainer(tmp_path, store, settings()))
    assert steps_on_disk(tmp_path / "checkpoints") == []
