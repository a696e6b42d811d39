"""The filter of languages, by py3langid: an n-gram classifier whose model is inside its package."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from leveret.data.filters.config import LanguageConfig
from leveret.data.filters.measures import Measured, Measures, Result
from leveret.errors import UserError


class Language(Measured):
    """Keeps texts that are in one of the languages with at least the least probability.

    Raises UserError if py3langid is not installed, or does not know one of the languages.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(self._probability, config)
        self._identifier = _identifier()
        self._kept = config.languages
        self._characters = config.characters
        for code in config.languages:
            if code not in (known := self._identifier.labels):
                near = "".join(f"; did you mean '{match}'?" for match in get_close_matches(code, known, 1, 0.5))
                raise UserError(
                    f"filter 'language': no language '{code}'{near or '.'} Known: {' '.join(sorted(known))}"
                )

    def __call__(self, text: str) -> Result:
        ranked = self._rank(text)
        probability = self._of_kept(ranked)
        if not self.judge({"probability": probability}):
            return Result(text)
        return Result(None, f"language {ranked[0][0]}: probability of {', '.join(self._kept)} is {probability:.3f}")

    def _probability(self, text: str) -> Measures:
        return {"probability": self._of_kept(self._rank(text))}

    def _of_kept(self, ranked: list[tuple[str, float]]) -> float:
        return min(sum(probability for code, probability in ranked if code in self._kept), 1.0)

    def _rank(self, text: str) -> list[tuple[str, float]]:
        """Languages with their probabilities, the most probable first."""
        ranked: list[tuple[str, float]] = self._identifier.rank(excerpt(text, self._characters))
        return ranked


def excerpt(text: str, characters: int) -> str:
    """The whole text, or a third of the characters each from its beginning, middle and end."""
    if len(text) <= characters:
        return text
    third = -(-characters // 3)
    middle = (len(text) - third) // 2
    return "\n".join((text[:third], text[middle : middle + third], text[-third:]))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """py3langid's classifier; takes half a second and 100 MB, once per process."""
    library_version()
    langid = import_module("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def library_version() -> str:
    """The version of py3langid. Raises UserError if it is not installed, or is one whose model is a pickle."""
    try:
        found = version("py3langid")
    except PackageNotFoundError as error:
        raise UserError("filter 'language' needs py3langid; pip install 'leveret[data]'") from error
    if tuple(map(int, found.split(".")[:2])) < (0, 4):
        raise UserError(f"filter 'language' needs py3langid 0.4 or later, this is {found}; pip install 'leveret[data]'")
    return found
