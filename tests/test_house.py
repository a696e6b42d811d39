"""The ways of the house that a machine can check: who may import whom, how long things get, and no pickle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "leveret"
FILES = sorted(SOURCE.rglob("*.py"))

ORDER: list[set[str]] = [
    {"errors", "config", "display", "strangers"},
    {"recipes"},
    {"hardware"},
    {"tokenizer"},
    {"data"},
    {"tasks"},
    {"model"},
    {"inference"},
    {"training"},
    {"posttraining"},
    {"evaluation"},
    {"depth"},
    {"recipe"},
    {"schema"},
    {"rundir"},
    {"planning", "audit"},
    {"report"},
    {"export"},
    {"run", "stages", "api", "candidates", "smoke", "rehearse", "changes", "runs", "curves"},
    {"serving"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""Data flows down this list; a module imports from its own line and from those above it."""

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

LONGEST_FILE = 500
LONGEST_FUNCTION = 60

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HEAVY = {"torch", "numpy", "tokenizers", "transformers", "sentencepiece", "datasets", "pyarrow", "matplotlib"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def place(path: Path) -> str:
    """The folder or module right under the package that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, folder or module of this package) for every import, those inside functions too."""
    for node in ast.walk(tree(path)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [alias.name for alias in node.names]
            at_root = [f"leveret.{name}" for name in names if name in RANK] or ["leveret"] * (names != ["__version__"])
            modules = at_root if node.module == "leveret" else [node.module or ""]
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "leveret":
                yield node.lineno, rest.partition(".")[0] or "__init__"


def test_every_folder_and_module_has_a_place_in_the_order() -> None:
    assert {place(path) for path in FILES} - RANK.keys() == set()


def test_imports_point_up_the_list_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for path in FILES
        for line, name in imported(path)
        if RANK[name] > RANK[place(path)]
    ]
    assert wrong == []


def test_no_file_and_no_function_is_long() -> None:
    long = []
    for path in FILES:
        if (lines := len(path.read_text("utf-8").splitlines())) > LONGEST_FILE:
            long.append(f"{path.relative_to(SOURCE)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_nothing_reads_or_writes_a_pickle() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                wrong += [(path.name, node.lineno, name) for name in named if name.partition(".")[0] in PICKLES]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                allowed = [key.value for key in node.keywords if key.arg == "allow_pickle"]
                refused = len(allowed) == 1 and isinstance(allowed[0], ast.Constant) and allowed[0].value is False
                if called in ("torch.load", "torch.save") or (called in ("np.load", "np.save") and not refused):
                    wrong.append((path.name, node.lineno, called))
    assert wrong == []


@pytest.mark.parametrize(("arguments", "unwanted"), [(["--help"], HEAVY), (["recipes"], HEAVY - {"numpy"})])
def test_light_verbs_import_nothing_heavy(arguments: list[str], unwanted: set[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['leveret', *{arguments}]\n"
        "try:\n    runpy.run_module('leveret', run_name='__main__')\n"
        "finally:\n    print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()}
    assert "leveret" in loaded
    assert loaded & unwanted == set()
