"""Functions of the user's own, found by path: `package.module:function` or `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from math import isnan
from pathlib import Path
from types import ModuleType
from typing import Any

from leveret.errors import UserError


def score(path: str, base_dir: Path) -> Callable[[str], float]:
    """The function at `path`, checked to return a number. Raises UserError for whatever goes wrong in it."""
    function = load(path, base_dir)

    def checked(text: str) -> float:
        answer = _call(function, text, path)
        try:
            value = float(answer)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"'{path}' returned {answer!r:.60}; a score is a number") from error
        if isnan(value):
            raise UserError(f"'{path}' returned nan; a score is a number")
        return value

    return checked


def predicate(path: str, base_dir: Path) -> Callable[[str], bool]:
    """The function at `path`, checked to return True or False. Raises UserError for whatever goes wrong in it."""
    function = load(path, base_dir)

    def checked(text: str) -> bool:
        answer = _call(function, text, path)
        if type(answer).__name__ not in ("bool", "bool_"):  # numpy's too
            raise UserError(f"'{path}' returned {answer!r:.60}; a predicate returns True or False")
        return bool(answer)

    return checked


def load(path: str, base_dir: Path) -> Callable[[str], Any]:
    """The function at `path`; files are relative to `base_dir`. Raises UserError where it cannot be had."""
    place, _, name = path.rpartition(":")
    module = _module(place, base_dir, path)
    function = getattr(module, name, None)
    if function is None:
        near = "".join(f"; did you mean '{match}'?" for match in get_close_matches(name, dir(module), 1))
        raise UserError(f"'{path}': nothing there is called '{name}'{near}")
    if not callable(function):
        raise UserError(f"'{path}': '{name}' is no function but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def source_hash(path: str, base_dir: Path) -> str | None:
    """SHA-256 in hex of the file that holds the function, so that a change of it can be seen; None for modules
    without a file. What that file imports is not looked at."""
    place = path.rpartition(":")[0]
    file = getattr(_module(place, base_dir, path), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _module(place: str, base_dir: Path, path: str) -> ModuleType:
    try:
        return _run_file(base_dir / place, path) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"'{path}' cannot be imported ({_described(error)})") from error


def _run_file(file: Path, path: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"'{path}': no such file: {file}")
    name = f"leveret_hook_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and typing look their modules up
    spec.loader.exec_module(module)
    return module


def _call(function: Callable[[str], Any], text: str, path: str) -> Any:
    try:
        return function(text)
    except Exception as error:  # a user's function may raise anything
        raise UserError(f"'{path}' failed: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """An exception in one line, with the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f", {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
