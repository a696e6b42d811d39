"""Filters one after the other: what becomes of a text.

text --> filter --> filter --> ... --> Verdict
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from leveret.data.filters import config as kinds
from leveret.data.filters import hooks
from leveret.data.filters.config import FilterConfig
from leveret.data.filters.language import Language, library_version
from leveret.data.filters.lines import boilerplate, c4
from leveret.data.filters.measures import Filter, Measured, Result, length, quality, repetition
from leveret.data.filters.pii import pii
from leveret.errors import UserError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a text."""

    text: str | None
    """The text that is left; None if it was dropped."""
    by: str = ""
    """Name of the filter that dropped it."""
    why: str = ""
    """Why, as "rule: numbers"."""
    edits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """For each filter that changed the text and passed it on, how often, by the kind of change."""

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the filters that changed the text."""
        return tuple(self.edits)


class Chain:
    """Runs the filters of some configs; stateless, so that every worker can have its own.

    Raises UserError for a filter that cannot be made: a function that is not found, a language that is not known.
    """

    def __init__(self, configs: Sequence[FilterConfig], base_dir: Path) -> None:
        self.filters: dict[str, Filter] = {
            name: make_filter(config, base_dir) for name, config in zip(names(configs), configs, strict=True)
        }

    def __call__(self, text: str, where: str = "") -> Verdict:
        """The verdict on a text; `where` it stands is for the UserError of a user's own function that fails."""
        edits: dict[str, Mapping[str, int]] = {}
        for name, run in self.filters.items():
            result = apply(name, run, text, where)
            if result.text is None:
                return Verdict(None, name, result.why, edits)
            if result.edits:
                edits[name] = result.edits
            text = result.text
        return Verdict(text, edits=edits)


def apply(name: str, run: Filter, text: str, where: str = "") -> Result:
    """What one filter makes of a text; one that leaves nothing of it drops it. Raises UserError as `Chain` does."""
    try:
        result = run(text)
    except UserError as error:
        raise UserError(f"{where + ': ' if where else ''}filter '{name}': {error}") from error
    if result.edits and result.text is not None and not result.text.strip():
        return Result(None, "nothing left", result.edits)
    return result


def names(configs: Sequence[FilterConfig]) -> list[str]:
    """One name for each filter: its kind, and a number from the second of a kind on."""
    count: Counter[str] = Counter()
    found = []
    for config in configs:
        count[config.kind] += 1
        found.append(config.kind if count[config.kind] == 1 else f"{config.kind}-{count[config.kind]}")
    return found


def make_filter(config: FilterConfig, base_dir: Path) -> Filter:
    """The filter of a config; `base_dir` is what the paths of a user's own files start from."""
    match config:
        case kinds.LengthConfig():
            return Measured(length, config)
        case kinds.GopherQualityConfig():
            return Measured(partial(quality, stop_words=frozenset(config.stop_words)), config)
        case kinds.GopherRepetitionConfig():
            return Measured(repetition, config)
        case kinds.C4Config():
            return c4(config)
        case kinds.BoilerplateConfig():
            return boilerplate(config)
        case kinds.LanguageConfig():
            return Language(config)
        case kinds.PiiConfig():
            return pii(config)
        case kinds.QualityConfig():
            score = hooks.score(config.path, base_dir)
            return Measured(lambda text: {"score": score(text)}, config)
        case kinds.PredicateConfig():
            keeps = hooks.predicate(config.path, base_dir)
            return lambda text: Result(text) if keeps(text) else Result(None, f"{config.path} is False")
        case _:
            assert_never(config)


def facts(configs: Sequence[FilterConfig], base_dir: Path) -> list[dict[str, Any]]:
    """What decides the filters' verdicts, as JSON, for manifests and fingerprints: the configs, the SHA-256 of a
    user's own code, and the version of the language classifier."""
    found = []
    for config in configs:
        fact: dict[str, Any] = config.model_dump(mode="json")
        match config:
            case kinds.QualityConfig() | kinds.PredicateConfig():
                fact["sha256"] = hooks.source_hash(config.path, base_dir)
            case kinds.LanguageConfig():
                fact["version"] = library_version()
        found.append(fact)
    return found
