"""What is to be started, and the files that do it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from leveret.errors import UserError
from leveret.recipe import Recipe


@dataclass(frozen=True)
class Launch:
    """What is to be started.

    verb: of leveret's command line. source: how the recipe was named, and words: what came after it; what runs in this
    folder is given the same. recipe, base: it as resolved, which runs elsewhere, and where its paths start from. nodes:
    machines. gpus: processes on each; 0: one without a GPU. gpu: its name. head: name of the first machine, where all
    find each other. time: Slurm's limit. options: more of Slurm's. bucket: what SkyPilot's storage is called. secrets:
    names of variables of the environment to hand on.
    """

    verb: str
    source: str
    words: list[str]
    recipe: Recipe
    base: Path
    nodes: int = 1
    gpus: int = 1
    gpu: str = ""
    head: str = ""
    time: str | None = None
    options: list[str] = field(default_factory=list)
    bucket: str = ""
    secrets: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the recipe, in letters that every platform takes for a job's name."""
        plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in self.recipe.name.lower())
        return plain.strip("-") or "run"

    @property
    def label(self) -> str:
        """Of what is made for it elsewhere: an image, a volume, an app."""
        return self.name if self.name.startswith("leveret") else f"leveret-{self.name}"

    @property
    def local_words(self) -> list[str]:
        """Of leveret's command line, where the recipe is at hand."""
        return [self.verb, self.source, *self.words]


@dataclass(frozen=True)
class Files:
    """What is written into a folder, and what hands it over.

    texts: by name. trees: folders and files that are copied, by name. submit: commands, given within the folder, one
    after the other.
    """

    texts: dict[str, str]
    submit: list[list[str]]
    trees: dict[str, Path] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Writes all; a file that is there and says something else is kept as NAME.old. Returns what was written,
        of folders their names."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.texts.items():
            path = folder / name
            if path.exists() and path.read_text("utf-8") != text:
                path.replace(folder / f"{name}.old")
            path.write_text(text, encoding="utf-8")
        for name, source in self.trees.items():
            _copy(source, folder / name)
        tops = dict.fromkeys(Path(name).parts[0] for name in self.trees)
        return [folder / name for name in (*self.texts, *tops)]


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


def leveret_words(launch: Launch, python: str, words: list[str], where: list[str]) -> list[str]:
    """The command that runs leveret, through torchrun where there are several processes.

    Args:
        python: the interpreter.
        words: of leveret's command line, the verb first.
        where: torchrun's options that say where the processes meet.
    """
    if launch.gpus <= 1 and launch.nodes == 1:
        return [python, "-m", "leveret", *words]
    return torchrun_words(launch, python, words, where)


def torchrun_words(launch: Launch, python: str, words: list[str], where: list[str]) -> list[str]:
    """The command that starts the processes of one machine."""
    processes = [f"--nproc-per-node={launch.gpus}", f"--max-restarts={RESTARTS}"]
    return [python, "-m", "torch.distributed.run", *where, *processes, "-m", "leveret", *words]


def meeting(launch: Launch, head: str) -> list[str]:
    """torchrun's options that say where the processes find each other."""
    if launch.nodes == 1:
        return ["--standalone"]
    place = f"--rdzv-endpoint={head}:{PORT}"
    return [f"--nnodes={launch.nodes}", "--rdzv-backend=c10d", place, f"--rdzv-id={launch.name}"]


def one_machine(launch: Launch, platform: str) -> None:
    """Raises UserError for several."""
    if launch.nodes > 1:
        raise UserError(
            f"--on {platform} is for one machine, as several need a disk that all see: take more --gpus, or "
            "--on slurm or torchrun"
        )


RESTARTS = 3
"""How often torchrun starts all ranks anew when one is lost; each time they go on from the newest checkpoint."""
PORT = 29500
"""Where the processes of several machines meet."""
HERE = sys.executable
"""The interpreter, where the same one is there."""
