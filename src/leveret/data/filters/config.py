"""What each filter of documents takes, one config per kind; a recipe lists them in the order they run.

Fields `least_X` and `most_X` bound the measure X of a text (see measures.py); null takes a bound off. Sources:

- Gopher: Rae et al. 2021, arXiv 2112.11446, section A.1.1 and table A1
- C4: Raffel et al. 2020, arXiv 1910.10683, section 2.2, and the c4_utils of TensorFlow Datasets
- RefinedWeb: Penedo et al. 2023, arXiv 2306.01116, section 3.2 and appendix G.2
- FineWeb: Penedo et al. 2024, arXiv 2406.17557, section 3
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from leveret.config import Config

Share = Annotated[float, Field(ge=0, le=1)]
HookPath = Annotated[str, Field(pattern=r"^\S.*:[A-Za-z_]\w*$")]


class LengthConfig(Config):
    """Drops texts that are too short or too long."""

    kind: Literal["length"] = "length"
    least_words: NonNegativeInt | None = None
    """Fewest words, parted by white space."""
    most_words: PositiveInt | None = None
    """Most words."""
    least_characters: NonNegativeInt | None = 1
    """Fewest characters."""
    most_characters: PositiveInt | None = None
    """Most characters."""


class GopherQualityConfig(Config):
    """Drops texts that do not look like prose (Gopher, quality filtering)."""

    kind: Literal["gopher-quality"] = "gopher-quality"
    least_words: NonNegativeInt | None = 50
    """Fewest words, parted by white space (Gopher)."""
    most_words: PositiveInt | None = 100_000
    """Most words (Gopher)."""
    least_mean_word_length: float | None = 3
    """Least mean length of a word, in characters (Gopher)."""
    most_mean_word_length: float | None = 10
    """Greatest mean length of a word, in characters (Gopher)."""
    most_symbols_per_word: float | None = 0.1
    """Most hash signs per word, and most ellipses per word (Gopher)."""
    most_bullet_lines: Share | None = 0.9
    """Greatest share of the lines that starts with a bullet (Gopher); here and below empty lines do not count."""
    most_ellipsis_lines: Share | None = 0.3
    """Greatest share of the lines that ends with an ellipsis (Gopher)."""
    least_alphabetic_words: Share | None = 0.8
    """Least share of the words that holds a letter (Gopher)."""
    least_stop_words: NonNegativeInt | None = 2
    """Fewest different words of `stop_words` that occur (Gopher)."""
    stop_words: list[str] = Field(default=["the", "be", "to", "of", "and", "that", "have", "with"], min_length=1)
    """Words that prose is never without, in small letters (Gopher, for English)."""


class GopherRepetitionConfig(Config):
    """Drops texts that repeat themselves (Gopher, table A1).

    Of lines, paragraphs and runs of 5 words and more their first occurrence does not count. Of the most frequent run
    each occurrence does, so that one that overlaps with itself may have a share of more than 1.
    """

    kind: Literal["gopher-repetition"] = "gopher-repetition"
    most_duplicate_lines: Share | None = 0.30
    """Greatest share of the lines that occurred before (Gopher)."""
    most_duplicate_paragraphs: Share | None = 0.30
    """Greatest share of the paragraphs (parted by empty lines) that occurred before (Gopher)."""
    most_duplicate_line_characters: Share | None = 0.20
    """Greatest share of the characters in such lines (Gopher)."""
    most_duplicate_paragraph_characters: Share | None = 0.20
    """Greatest share of the characters in such paragraphs (Gopher)."""
    most_top_2_gram_characters: Share | None = 0.20
    """Greatest share of the characters in the most frequent run of 2 words (Gopher)."""
    most_top_3_gram_characters: Share | None = 0.18
    """The same for 3 words (Gopher)."""
    most_top_4_gram_characters: Share | None = 0.16
    """The same for 4 words (Gopher)."""
    most_duplicate_5_gram_characters: Share | None = 0.15
    """Greatest share of the characters in runs of 5 words that occurred before (Gopher)."""
    most_duplicate_6_gram_characters: Share | None = 0.14
    """The same for 6 words (Gopher)."""
    most_duplicate_7_gram_characters: Share | None = 0.13
    """The same for 7 words (Gopher)."""
    most_duplicate_8_gram_characters: Share | None = 0.12
    """The same for 8 words (Gopher)."""
    most_duplicate_9_gram_characters: Share | None = 0.11
    """The same for 9 words (Gopher)."""
    most_duplicate_10_gram_characters: Share | None = 0.10
    """The same for 10 words (Gopher)."""


class C4Config(Config):
    """Takes out lines that are no sentences, and drops texts with code or with little left (C4)."""

    kind: Literal["c4"] = "c4"
    terminal_punctuation: bool = True
    """Take out lines that do not end with . ? ! or a closing quotation mark (C4). FineWeb does without this
    rule, which by itself takes out about 30% of the tokens of the web; headings and code go too."""
    least_words_per_line: NonNegativeInt = 5
    """Take out lines of fewer words (C4)."""
    longest_word: PositiveInt | None = 1000
    """Take out lines with a longer word, in characters (c4_utils)."""
    javascript: bool = True
    """Take out lines with the word "javascript" (C4)."""
    policies: bool = True
    """Take out lines that speak of terms of use, privacy policies or cookies (C4)."""
    lorem_ipsum: bool = True
    """Drop texts with "lorem ipsum" (C4)."""
    curly_brackets: bool = True
    """Drop texts with a curly bracket, which is mostly code (C4)."""
    least_sentences: NonNegativeInt = 3
    """Drop texts with fewer sentences left (C4)."""


class BoilerplateConfig(Config):
    """Takes out lines of addresses and of navigation, and drops texts that have many (RefinedWeb)."""

    kind: Literal["boilerplate"] = "boilerplate"
    most_url_share: Share | None = 0.5
    """Take out lines with a greater share of their characters in web addresses; our choice."""
    navigation: bool = True
    """Take out menus, counters ("3 likes") and short lines such as "Sign in" or "Read more" (RefinedWeb)."""
    most_taken_out: Share | None = 0.05
    """Drop texts of which a greater share of the characters was taken out (RefinedWeb)."""


class LanguageConfig(Config):
    """Drops texts in other languages, by py3langid (an n-gram classifier of 139 languages)."""

    kind: Literal["language"] = "language"
    languages: list[str] = Field(default=["en"], min_length=1)
    """Languages to keep, as ISO 639 codes."""
    least_probability: Share | None = 0.65
    """Least probability that the text is in one of these languages (FineWeb, there by fastText)."""
    characters: PositiveInt = 600
    """Characters of a longer text that are looked at: a third each from its beginning, middle and end."""


class PiiConfig(Config):
    """Masks e-mail addresses, IP addresses and telephone numbers; drops nothing."""

    kind: Literal["pii"] = "pii"
    email: str | None = "<email>"
    """What stands in the place of an e-mail address; null leaves it."""
    ip: str | None = "<ip>"
    """What stands in the place of an IPv4 or IPv6 address that is public (FineWeb); null leaves it."""
    phone: str | None = "<phone>"
    """What stands in the place of a telephone number: with +, in North America's form, or after a word such as
    "phone"; null leaves it."""


class QualityConfig(Config):
    """Drops texts by a score of your own, such as a classifier's."""

    kind: Literal["quality"] = "quality"
    path: HookPath
    """Function that takes a text and returns a number: `package.module:function`, or `file.py:function` with the
    file relative to the recipe's folder."""
    least: float | None = None
    """Least score that is kept."""
    most: float | None = None
    """Greatest score that is kept."""


class PredicateConfig(Config):
    """Drops texts for which a function of your own returns False."""

    kind: Literal["predicate"] = "predicate"
    path: HookPath
    """Function that takes a text and returns True to keep it: `package.module:function`, or `file.py:function`
    with the file relative to the recipe's folder."""


FilterConfig = Annotated[
    LengthConfig
    | GopherQualityConfig
    | GopherRepetitionConfig
    | C4Config
    | BoilerplateConfig
    | LanguageConfig
    | PiiConfig
    | QualityConfig
    | PredicateConfig,
    Field(discriminator="kind"),
]
