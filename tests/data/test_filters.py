"""Each filter on texts whose verdict can be seen by eye, and the chain of them."""

import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from leveret.data.filters.chain import Chain, Verdict, facts
from leveret.data.filters.config import FilterConfig
from leveret.data.filters.measures import quality, repetition
from leveret.errors import UserError

KIND = TypeAdapter(FilterConfig)

PROSE = (
    "The harbour was quiet that morning, and the boats lay still on the water with their sails rolled up.\n"
    "An old man came to the end of the pier to mend a net that he had torn on the rocks the day before.\n"
    "He said that the fish would be back in a week, and that until then he would have time to rest.\n"
)


def chain(*filters: dict[str, object], base: Path = Path()) -> Chain:
    return Chain([KIND.validate_python(each) for each in filters], base)


def run(text: str, kind: str, base: Path = Path(), **fields: object) -> Verdict:
    return chain({"kind": kind, **fields}, base=base)(text)


# --- length and Gopher's rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "why"),
    [
        ("one two three", {"least_words": 4}, "least words: 3 < 4"),
        ("one two three", {"most_words": 2}, "most words: 3 > 2"),
        ("one two three", {"least_characters": 14}, "least characters: 13 < 14"),
        ("one two three", {"most_characters": 12}, "most characters: 13 > 12"),
        ("one two three", {"least_words": 3, "most_words": 3, "least_characters": 13, "most_characters": 13}, ""),
    ],
)
def test_length(text: str, fields: dict[str, int], why: str) -> None:
    verdict = run(text, "length", **fields)
    assert verdict.why == why
    assert verdict.text == (None if why else text)


GOPHER_BREAKERS = {
    "least words": "The few words that we have to be with.",
    "least mean word length": "the be to of and a b c d e f g h i j k l m n o " * 3,
    "most symbols per word": PROSE + "# " * 8,
    "most bullet lines": "- " + PROSE.replace("\n", "\n- ").removesuffix("- "),
    "most ellipsis lines": PROSE.replace(".\n", "...\n"),
    "least alphabetic words": PROSE + "12 34 56 " * 8,
    "least stop words": "Sieben kleine Boote lagen still im Hafen und warteten auf guten Wind. " * 5,
}


@pytest.mark.parametrize("rule", GOPHER_BREAKERS)
def test_gopher_quality_drops_by_the_rule_that_is_broken(rule: str) -> None:
    verdict = run(GOPHER_BREAKERS[rule], "gopher-quality")
    assert (verdict.text, verdict.by, verdict.why.partition(":")[0]) == (None, "gopher-quality", rule)


def test_gopher_quality_keeps_prose_and_null_takes_a_bound_off() -> None:
    assert run(PROSE, "gopher-quality").text == PROSE
    assert run(GOPHER_BREAKERS["least words"], "gopher-quality", least_words=None).text is not None


def test_measures_of_quality() -> None:
    text = "• The cat, 12 # …\n\n  * and the dog...\nthe Be"
    measures = quality(text, frozenset({"the", "be", "to"}))
    words = ["•", "The", "cat,", "12", "#", "…", "*", "and", "the", "dog...", "the", "Be"]
    assert measures == {
        "words": 12,
        "mean_word_length": sum(map(len, words)) / 12,
        "symbols_per_word": 2 / 12,
        "bullet_lines": 2 / 3,
        "ellipsis_lines": 2 / 3,
        "alphabetic_words": pytest.approx(7 / 12),
        "stop_words": 2,
    }


def naive_repetition(text: str) -> dict[str, float]:
    """The shares of repeated runs of words, by lists and sets."""
    words = text.split()
    total = sum(map(len, words)) or 1
    found: dict[str, float] = {}
    for n in range(2, 5):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(grams.values(), default=0)
        longest = max((sum(map(len, gram)) for gram, count in grams.items() if count == most), default=0)
        found[f"top_{n}_gram_characters"] = most * longest / total if most > 1 else 0.0
    for n in range(5, 11):
        seen, inside = set(), [False] * len(words)
        for i in range(len(words) - n + 1):
            if (gram := tuple(words[i : i + n])) in seen:
                inside[i : i + n] = [True] * n
            seen.add(gram)
        covered = sum(len(word) for word, is_inside in zip(words, inside, strict=True) if is_inside)
        found[f"duplicate_{n}_gram_characters"] = covered / total
    return found


def test_repetition_agrees_with_a_naive_count() -> None:
    draw = random.Random(3)
    for _ in range(400):
        few = draw.choice([["a", "bb"], ["ö", "bb", "ccc", "dd,"], [f"w{n}" for n in range(40)]])
        text = " ".join(draw.choices(few, k=draw.randint(0, 60)))
        text += draw.choice(["", " " + text, "\n" + text[: draw.randint(0, len(text))]])
        measured = repetition(text)
        expected = naive_repetition(text)
        assert {name: measured[name] for name in expected} == pytest.approx(expected), text


def test_repeated_lines_and_paragraphs() -> None:
    measures = repetition("one\n\ntwo\ntwo\n\n  one \r\n\r\nthree four")
    assert measures["duplicate_lines"] == pytest.approx(2 / 5)
    assert measures["duplicate_line_characters"] == pytest.approx(6 / 22)
    assert measures["duplicate_paragraphs"] == pytest.approx(1 / 4)
    assert measures["duplicate_paragraph_characters"] == pytest.approx(3 / 23)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PROSE + "\n" + PROSE, "most duplicate lines"),
        (PROSE + "spam and eggs, " * 20, "most top 2 gram characters"),
        (PROSE.replace("\n", " ") + PROSE, "most duplicate 5 gram characters"),
    ],
)
def test_gopher_repetition_drops(text: str, rule: str) -> None:
    assert run(text, "gopher-repetition").why.partition(":")[0] == rule
    assert run(PROSE, "gopher-repetition").text == PROSE


# --- lines ---------------------------------------------------------------------------------------------------


def test_c4_takes_lines_out_and_counts_them_by_fault() -> None:
    text = (
        "Harbour news\n\n" + PROSE + "\nEnable JavaScript to see all of this page.\nThis site uses cookies to know "
        f"who you are.\nToo short.\nHe did not say any more than that...\nA word of {'x' * 1001} letters.\n"
    )
    verdict = run(text, "c4")
    assert verdict.text == PROSE.rstrip("\n")
    assert verdict.edits == {
        "c4": {"no end mark": 2, "javascript": 1, "uses cookies": 1, "few words": 1, "long word": 1},
    }
    assert verdict.changed == ("c4",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PROSE + "if (wind) { sail(); }", "curly bracket"),
        (PROSE + "Lorem ipsum dolor sit amet.", "lorem ipsum"),
        (PROSE.split("\n")[0], "least sentences: 1 < 3"),
        ("Home\nAbout us\nContact\n", "least sentences: 0 < 3"),
    ],
)
def test_c4_drops(text: str, why: str) -> None:
    verdict = run(text, "c4")
    assert (verdict.text, verdict.by, verdict.why) == (None, "c4", why)


def test_c4_rules_can_be_turned_off() -> None:
    off = dict.fromkeys(("terminal_punctuation", "javascript", "policies", "lorem_ipsum", "curly_brackets"), False)
    text = "{ lorem ipsum\nJavaScript\nprivacy policy " + "x" * 2000
    assert run(text, "c4", least_words_per_line=0, least_sentences=0, longest_word=None, **off) == Verdict(text)


BOILERPLATE = {
    "https://example.org/a/long/path?with=query": "address",
    "See: http://example.org/page/of/things": "address",
    "Home | About us | Contact": "menu",
    "Start » News » Sport": "menu",
    "3 likes": "counter",
    "1,204 views · 12 comments": "counter",
    "Sign in": "phrase",
    "Share this on Facebook": "phrase",
    "Read more...": "phrase",
    "© 2019 The Harbour Company": "phrase",
    "All rights reserved.": "phrase",
    "Sign in to the office before you go to the pier.": "",
    "| a | b | c |": "",
    "The page https://example.org holds the tables of tides for this year.": "",
    "12 men and 3 boys": "",
    "He would read more.": "",
    "What comes next?": "",
}


@pytest.mark.parametrize("line", BOILERPLATE)
def test_boilerplate_lines(line: str) -> None:
    verdict = run(f"{PROSE}{line}\nThe end.", "boilerplate", most_taken_out=None)
    fault = BOILERPLATE[line]
    assert verdict.edits == ({"boilerplate": {fault: 1}} if fault else {})
    assert verdict.text == (f"{PROSE}The end." if fault else f"{PROSE}{line}\nThe end.")


def test_boilerplate_drops_texts_that_are_much_of_it() -> None:
    verdict = run("Home | About | Contact\n" * 3 + PROSE, "boilerplate")
    assert verdict.text is None
    assert verdict.why.startswith("most taken out: 0.1")
    assert verdict.edits == {}
    only = run("Sign in\n3 likes\n", "boilerplate", most_taken_out=None)
    assert (only.text, only.why) == (None, "nothing left")


# --- languages -----------------------------------------------------------------------------------------------

SENTENCES = {
    "en": "The children went down to the river in the afternoon, because it was too hot to stay in the house.",
    "de": "Am Nachmittag gingen die Kinder zum Fluss hinunter, weil es im Haus viel zu heiß war.",
    "fr": "L'après-midi, les enfants sont descendus à la rivière parce qu'il faisait trop chaud dans la maison.",
    "es": "Por la tarde los niños bajaron al río porque hacía demasiado calor para quedarse en casa.",
    "it": "Nel pomeriggio i bambini scesero al fiume, perché in casa faceva troppo caldo.",
    "pt": "À tarde as crianças desceram até ao rio, porque fazia demasiado calor para ficar em casa.",
    "nl": "In de middag gingen de kinderen naar de rivier, omdat het te warm was om in huis te blijven.",
    "sv": "På eftermiddagen gick barnen ner till floden, eftersom det var för varmt att stanna i huset.",
    "pl": "Po południu dzieci poszły nad rzekę, ponieważ w domu było zbyt gorąco.",
    "fi": "Iltapäivällä lapset menivät joelle, koska talossa oli liian kuuma.",
    "tr": "Öğleden sonra çocuklar nehre indiler, çünkü evde kalmak için hava çok sıcaktı.",
    "ru": "После обеда дети пошли к реке, потому что в доме было слишком жарко.",
    "el": "Το απόγευμα τα παιδιά κατέβηκαν στο ποτάμι, γιατί μέσα στο σπίτι έκανε πολλή ζέστη.",
    "ar": "ذهب الأطفال إلى النهر بعد الظهر لأن الجو كان حارا جدا داخل البيت.",
    "zh": "下午孩子们到河边去了，因为屋子里太热，待不下去。",
    "ja": "午後、家の中が暑すぎたので、子供たちは川へ下りて行きました。",
    "ko": "오후에 집 안이 너무 더워서 아이들은 강으로 내려갔습니다.",
}


def test_language_tells_seventeen_apart() -> None:
    right = [code for code, text in SENTENCES.items() if run(text, "language", languages=[code]).text == text]
    assert right == list(SENTENCES)
    english = chain({"kind": "language"})
    kept = [code for code, text in SENTENCES.items() if english(text).text is not None]
    assert kept == ["en"]
    assert english(SENTENCES["de"]).why == "language de: probability of en is 0.000"


def test_language_keeps_several_and_looks_at_three_places() -> None:
    assert run(SENTENCES["fr"], "language", languages=["en", "fr"]).text == SENTENCES["fr"]
    mixed = "\n".join([SENTENCES["en"]] * 20 + [SENTENCES["ru"]] * 40)
    assert run(mixed, "language").text is None
    with pytest.raises(UserError, match="no language 'eng'; did you mean 'en'"):
        chain({"kind": "language", "languages": ["eng"]})
    with pytest.raises(UserError, match=r"no language 'zzzz'\. Known: .* en "):
        chain({"kind": "language", "languages": ["zzzz"]})


def test_language_says_how_to_install_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from leveret.data.filters import language

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    language._identifier.cache_clear()
    monkeypatch.setattr(language, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'leveret\[data\]'"):
        chain({"kind": "language"})


# --- personal data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to anna.b+news@mail.example.co.uk, please.", "Write to <email>, please."),
        ("<jo_1@example.org>", "<<email>>"),
        ("It came from 8.8.4.4:53 and 2001:4860:4860::8888.", "It came from <ip>:53 and <ip>."),
        ("Call +44 20 7946 0958 or +4915112345678.", "Call <phone> or <phone>."),
        ("(212) 555-0123, 212-555-0123, 1-212-555-0123 and 212.555.0123", "<phone>, <phone>, <phone> and <phone>"),
        ("Tel.: 030 1234567, fax 030/12", "Tel.: <phone>, fax 030/12"),
    ],
)
def test_pii_is_masked(text: str, masked: str) -> None:
    assert run(text, "pii").text == masked


@pytest.mark.parametrize(
    "text",
    [
        "a @ b, user@localhost, @home",
        "127.0.0.1, 10.1.2.3, 192.168.1.1, 300.1.1.1, 1.2.3.4.5, 7.0.0.0",
        "std::vector, a::b, 12:30:45, 2001:db8::1, fe80::1, 2019:",
        "1990 - 1995, 2020-10-12, 978-0-306-40615-7, 3.14159265, +32768000, 1 000 000 000",
        "between 1234567 and 7654321, 4111 1111 1111 1111",
    ],
)
def test_what_is_no_pii_stays(text: str) -> None:
    assert run(text, "pii") == Verdict(text)


def test_pii_counts_by_kind_and_leaves_what_it_is_told_to() -> None:
    text = "a@b.org, c@d.org, 8.8.8.8, +44 20 7946 0958"
    verdict = run(text, "pii")
    assert verdict.edits == {"pii": {"email": 2, "ip": 1, "phone": 1}}
    assert run(text, "pii", email=None, ip=None, phone="555").text == "a@b.org, c@d.org, 8.8.8.8, 555"


# --- a user's own functions ----------------------------------------------------------------------------------

HOOKS = """
from dataclasses import dataclass

@dataclass
class Scale:
    by: "float" = 0.5

def score(text): return Scale().by * len(text)
def keep(text): return "keep" in text
def broken(text): return 1 / (len(text) - 4)
def forgets(text): pass
def words(text): return "good"
def unsure(text): return float("nan")
def endless(text): return 10 ** 400
number = 3
"""


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "bad.py").write_text("import no_such_module_here\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    return tmp_path


def test_quality_and_predicate_of_a_file(hooks: Path) -> None:
    assert run("12345678", "quality", hooks, path="hooks.py:score", least=4).text == "12345678"
    assert run("1234567", "quality", hooks, path="hooks.py:score", least=4).why == "least score: 3.5 < 4"
    assert run("1234567", "quality", hooks, path="hooks.py:score", most=3).why == "most score: 3.5 > 3"
    assert run("keep it", "predicate", hooks, path="hooks.py:keep").text == "keep it"
    assert run("drop it", "predicate", hooks, path="hooks.py:keep").why == "hooks.py:keep is False"


def test_functions_of_a_package() -> None:
    assert run("abc", "quality", path="builtins:len", least=3).text == "abc"
    assert run("abc", "predicate", path="operator:not_").text is None


@pytest.mark.parametrize(
    ("kind", "path", "says"),
    [
        ("predicate", "none.py:keep", "no such file"),
        ("predicate", "no_such_package:keep", "cannot be imported (ModuleNotFoundError"),
        ("predicate", "bad.py:keep", "No module named 'no_such_module_here', bad.py:1"),
        ("predicate", "leaves.py:keep", "SystemExit: 3, leaves.py:2"),
        ("predicate", "hooks.py:kep", "nothing there is called 'kep'; did you mean 'keep'?"),
        ("quality", "hooks.py:number", "'number' is no function but int"),
        ("predicate", "hooks.py:broken", "dump.jsonl:7: filter 'predicate': 'hooks.py:broken' failed: ZeroDivision"),
        ("quality", "hooks.py:broken", "division by zero, hooks.py:10"),
        ("predicate", "hooks.py:forgets", "returned None; a predicate returns True or False"),
        ("quality", "hooks.py:words", "returned 'good'; a score is a number"),
        ("quality", "hooks.py:unsure", "returned nan"),
        ("quality", "hooks.py:endless", "00; a score is a number"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_in_a_line(hooks: Path, kind: str, path: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        chain({"kind": kind, "path": path}, base=hooks)("text", "dump.jsonl:7")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# --- the chain -----------------------------------------------------------------------------------------------


def test_chain_hands_what_one_filter_leaves_to_the_next() -> None:
    filters = chain(
        {"kind": "pii"}, {"kind": "c4", "least_sentences": 1}, {"kind": "length", "least_words": 12}, {"kind": "length"}
    )
    text = "Contact\nPlease write a letter to jo@example.org before the ships leave."
    verdict = filters(text)
    assert (verdict.text, verdict.by, verdict.why) == (None, "length", "least words: 10 < 12")
    assert verdict.changed == ("pii", "c4")
    assert list(filters.filters) == ["pii", "c4", "length", "length-2"]
    assert filters(PROSE) == Verdict(PROSE)
    assert chain()(PROSE) == Verdict(PROSE)


def test_a_config_of_no_known_kind_or_key_is_refused() -> None:
    for wrong in ({"kind": "gopher"}, {"kind": "c4", "least_word": 3}, {"kind": "predicate", "path": "no_function"}):
        with pytest.raises(ValidationError):
            KIND.validate_python(wrong)


def test_facts_change_with_the_users_code(hooks: Path) -> None:
    configs = [
        KIND.validate_python({"kind": "predicate", "path": "hooks.py:keep"}),
        KIND.validate_python({"kind": "c4"}),
    ]
    before = facts(configs, hooks)
    (hooks / "hooks.py").write_text(HOOKS + "# changed\n")
    after = facts(configs, hooks)
    assert before[0]["sha256"] != after[0]["sha256"]
    assert before[1] == after[1] == configs[1].model_dump(mode="json")


@pytest.mark.parametrize(
    "unit", ["a", "1.", "1-", "a@", "\n", ".\n", "a|", "2001:", "+1 ", "\0", "\u3000", "\ud800", "("]
)
def test_time_grows_with_the_length_only(unit: str) -> None:
    filters = chain(
        *({"kind": kind} for kind in ("pii", "boilerplate")),
        {"kind": "c4", "least_sentences": 0},
        {"kind": "gopher-quality"},
    )
    repeating = chain({"kind": "gopher-repetition"})
    text = unit * (300_000 // len(unit)) + "\nSign in"
    started = time.process_time()
    filters(text)
    repeating(text)
    assert time.process_time() - started < 3


def test_filters_leave_no_module_of_a_user_in_the_way(hooks: Path) -> None:
    chain({"kind": "predicate", "path": "hooks.py:keep"}, base=hooks)
    assert "hooks" not in sys.modules
