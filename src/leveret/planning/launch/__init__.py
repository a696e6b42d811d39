"""Files that start a training somewhere, such as a person would write them: one module for each sort of place.

    recipe + words --> Launch --> files_for --> Files --> write --> FOLDER
                                                       --> submit, the commands that hand them over

Each file goes on where the run was when it is started again. None holds a secret: those stay in the environment, and
a file holds their names.
"""

from __future__ import annotations

from collections.abc import Callable

from leveret.planning.launch.container import container_files
from leveret.planning.launch.modal import modal_files
from leveret.planning.launch.plan import Files, Launch
from leveret.planning.launch.processes import local_files, torchrun_files
from leveret.planning.launch.skypilot import skypilot_files
from leveret.planning.launch.slurm import slurm_files

PLATFORMS: dict[str, Callable[[Launch], Files]] = {
    "local": local_files,
    "torchrun": torchrun_files,
    "slurm": slurm_files,
    "skypilot": skypilot_files,
    "modal": modal_files,
    "container": container_files,
}
"""By what `--on` calls them."""
CLOUDS = {"skypilot", "modal", "container"}
"""Where the recipe, its files and this program have to travel to."""
