"""The run directory: paths, state, what is done and what is stale.

    RUN/  recipe.yaml  environment.json  state.json  tokenizer/  data.json  audit.json  report.md
          pretrain/ finetune/ ...
              checkpoints/  metrics.jsonl  metrics.csv  summary.json  plots/  samples.md  evaluation/

state.json says for every stage which inputs it was made from; other inputs make it stale.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leveret.errors import UserError
from leveret.strangers.documents import YAML_BYTES
from leveret.strangers.documents import read_json as read_limited_json
from leveret.strangers.files import read_limited
from leveret.training import STAGES

if TYPE_CHECKING:
    from leveret.recipe import Recipe

FORMAT_VERSION = 1


class RunDir:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def recipe(self) -> Recipe:
        """The resolved recipe that the run was made from."""
        from leveret.recipe import recipe_of_yaml

        return recipe_of_yaml(self.recipe_text(), str(self / "recipe.yaml"))

    def recipe_text(self) -> str:
        """The same as it stands there.

        Raises:
            UserError: it cannot be read, or is too large for one.
        """
        path = self / "recipe.yaml"
        try:
            return read_limited(path, YAML_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path} cannot be read ({reason})") from None

    def state(self) -> dict[str, Any]:
        """What is known of each stage: {"stages": {name: {"inputs", "finished", "seconds"}}}."""
        state = read_json(self / "state.json") or {"format_version": FORMAT_VERSION, "stages": {}}
        if state["format_version"] != FORMAT_VERSION:
            raise UserError(f"{self.path} was written by another version of Leveret; use a new --run-dir")
        return state

    def why_stale(self, stage: str, inputs: dict[str, str]) -> str | None:
        """Why a stage must be done again, in a few words; None if it was never begun or has these very inputs."""
        known = self.state()["stages"].get(stage)
        if known is None or known["inputs"] == inputs:
            return None
        before = known["inputs"]
        changed = [key for key in sorted(before | inputs) if before.get(key) != inputs.get(key)]
        return f"{', '.join(changed)} changed"

    def is_done(self, stage: str, inputs: dict[str, str]) -> bool:
        known = self.state()["stages"].get(stage)
        return known is not None and known["inputs"] == inputs and known["finished"] is not None

    def finished(self, stage: str) -> bool:
        """Whether it has ended, whatever it was made from."""
        return (self.state()["stages"].get(stage) or {}).get("finished") is not None

    def begin(self, stage: str, inputs: dict[str, str]) -> None:
        """Notes that a stage is being made; a model trained from its result is no longer this run's last."""
        for later in STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ():
            if known := self.state()["stages"].get(later):
                self._record(later, known | {"finished": None})
        self._record(stage, {"inputs": inputs, "finished": None, "seconds": None})

    def finish(self, stage: str, inputs: dict[str, str], seconds: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._record(stage, {"inputs": inputs, "finished": now, "seconds": round(seconds, 2)})

    def fail(self, stage: str, error: Exception) -> None:
        """Notes what ended a stage that was begun; `leveret runs` tells it."""
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        with suppress(OSError):  # a full disk: the error itself is what is to be told
            self._record(stage, self.state()["stages"][stage] | {"failed": why})

    def _record(self, stage: str, entry: dict[str, Any]) -> None:
        state = self.state()
        state["stages"][stage] = entry
        write_json(self / "state.json", state)

    def set_aside(self, stage: str) -> None:
        """Moves what a stale stage left to STAGE.stale, or STAGE.stale-2 and so on: it may have taken days."""
        folder, aside, number = self / stage, self / f"{stage}.stale", 1
        if folder.is_dir():
            while aside.exists():
                number += 1
                aside = self / f"{stage}.stale-{number}"
            folder.rename(aside)

    def last_trained(self) -> str:
        """The last finished stage that left a model.

        Raises:
            UserError: there is none.
        """
        stages = self.state()["stages"]
        for stage in reversed(STAGES):
            if stages.get(stage, {}).get("finished"):
                return stage
        raise UserError(f"{self.path} has no finished stage with a model yet; run `leveret run` on its recipe")


def find_run(reference: str) -> tuple[RunDir, str | None, int | None]:
    """Takes RUN, RUN/STAGE or RUN/STAGE@STEP apart; RUN is a directory, or a name under runs/.

    Raises:
        UserError: there is no such run.
    """
    text, _, step = reference.partition("@")
    if step and not step.isdigit():
        raise UserError(f"{reference!r}: the step after @ must be a number")
    path, stage = Path(text), None
    if path.name in STAGES:
        path, stage = path.parent, path.name
    for candidate in (path, Path("runs") / path):
        if (candidate / "recipe.yaml").is_file():
            return RunDir(candidate), stage, int(step) if step else None
    raise UserError(f"there is no run {text!r} here or under runs/; `leveret run RECIPE` makes one")


def read_json(path: Path) -> Any:
    """The content of a JSON file, None if there is none."""
    return read_limited_json(path) if path.exists() else None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run that may be under way or damaged, empty where there is none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
