"""Each mistake of the published models (see docs/fidelity.md), made again with little data, is caught by its audit."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from test_shards import FACTS, write

from leveret.audit.contamination import ContaminationAudit, clean_subset, passages_of, texts_of
from leveret.audit.finding import Finding, Stamp, lines
from leveret.audit.leaks import LeakAudit
from leveret.audit.reading import CorpusAudit, read_once
from leveret.audit.schedule import audit_schedule
from leveret.audit.splits import Overlap, audit_validation, overlap
from leveret.audit.tokens import CharacterAudit, audit_tokenizer
from leveret.data.examples import Example, Message
from leveret.data.shards import ShardWriter, TokenSplit, TokenStore
from leveret.data.sources import Document
from leveret.data.windows import concatenated
from leveret.errors import UserError
from leveret.tokenizer import SpecialRoles, Tokenizer, TokenizerConfig, render, train_tokenizer
from leveret.tokenizer.spm import definition_of, read_model
from leveret.tokenizer.template import template_text
from leveret.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

TEXTS = ["the parchment tells of one model and of its padding, find . -name x"] * 20
SPECIAL = ["<pad>", "<eos>", "<instruction>", "<command>"]


def trained(**changes: str | None) -> Tokenizer:
    config = {"pad_token": "<pad>", "eos_token": "<eos>", "template": "command"} | changes
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=320, special_tokens=SPECIAL, **config), TEXTS)  # type: ignore[arg-type]


def split_of(folder: Path, documents: Sequence[Sequence[int]], learn: Sequence[Sequence[bool]] = ()) -> TokenSplit:
    """Documents as the shards of a training split; learn: the tokens of each that are learnt, if only some are."""
    writer = ShardWriter(folder, 50_000, 1000, masked=bool(learn))
    for number, ids in enumerate(documents):
        writer.add("train", ids, text_bytes=len(ids), learn=learn[number] if learn else None)
    writer.finish({"train": concatenated(writer.starts("train"), writer.splits["train"].tokens, 7)}, FACTS)
    return TokenStore(folder).split("train")


def shown(audit: CorpusAudit, texts: Sequence[str]) -> Stamp:
    read_once((Document(text, "texts") for text in texts), [audit])
    return audit.stamp()


def only(stamp: Stamp, severity: str = "error") -> Finding:
    """The one finding of an audit that found something; its line names what, where and how to mend it."""
    assert stamp.state == "findings"
    (found,) = [finding for finding in stamp.findings if finding.severity == severity]
    assert found.what
    assert found.where
    assert found.mend
    assert "\n" not in found.told()
    return found


# --- parchment-166m ----------------------------------------------------------------------------------------------


def test_padding_that_is_a_word(tmp_path: Path) -> None:
    """Its card pads with 83285, a text token; the tokenizer's own <|endofprompt|> is 100276."""
    sound = trained()
    split = split_of(tmp_path / "s", [[*sound.encode(text), sound.eos_id or 0] for text in TEXTS])
    assert audit_tokenizer(trained(template=None), {"pretrain": split}, answers=True).state == "passed"
    word = next(sound.token_bytes(i).decode() for i in range(300, 320))
    spoilt = Tokenizer(sound.definition, SpecialRoles(eos_token="<eos>", pad_token=word.replace(" ", "Ġ")), None)
    found = only(audit_tokenizer(spoilt, {"pretrain": split}, answers=True))
    assert found.where == "tokenizer.pad_token"
    assert "is an ordinary word, which stands in texts" in found.what


def test_a_schedule_that_was_set_for_more_steps() -> None:
    """30,000 of 76,300 steps: the cosine still had most of its way down to go."""
    config = TrainingConfig(
        steps=76_300,
        batch_size=128,
        optimizer=OptimizerConfig(lr=3e-4),
        schedule=ScheduleConfig(warmup_steps=2000, min_lr=3e-5),
    )
    found = only(audit_schedule([("pretrain", config, 76_300, 30_000, None)]), "warning")
    assert "ended at step 30,000 of 76,300 at a rate of 0.000216" in found.what
    assert "set pretrain.steps" in found.mend
    assert audit_schedule([("pretrain", config, 30_000, 30_000, None)]).state == "passed"
    stuck = audit_schedule([("pretrain", config, 30_000, 30_000, 3e-4)])  # what the log says counts
    assert stuck.state == "findings"
    level = config.model_copy(update={"schedule": ScheduleConfig(kind="constant")})
    assert audit_schedule([("pretrain", level, 100, 100, None)]).state == "passed"
    assert audit_schedule([]).not_run == "nothing has been trained yet"


# --- tinyllm-cli-67m ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SentencePiece BPE without byte fallback, trained on prose that has none of the shell's characters."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "corpus.txt").write_text("find the files of one kind and count them all\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spm"), vocab_size=60, model_type="bpe",
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<instruction>", "<command>"],
    )  # fmt: skip
    definition = definition_of(read_model((folder / "spm.model").read_bytes()), raw_spaces=False)
    return Tokenizer(definition, SpecialRoles("<s>", "</s>", "<pad>", "<unk>"))


def test_characters_that_cannot_be_written(without_bytes: Tokenizer) -> None:
    """`< > @ \\ ^ { | } ~` became one unknown token, and commands with them could not be learnt."""
    commands = ["find . | sort", "echo ${x} > out", "cat a@b", "ls ~"]
    stamp = shown(CharacterAudit(without_bytes, commands, ["a | b"]), ["the files of one kind"])
    found = only(stamp)
    assert found.where == "answers"
    for character, number in (("|", 1), (">", 1), ("{", 1), ("}", 1), ("@", 1), ("~", 1)):
        assert f"{character!r} ({number})" in found.what
    assert stamp.facts["answers"]["unknown"]["."] == 1
    assert {finding.where for finding in stamp.findings} == {"answers", "held-out answers"}
    assert shown(CharacterAudit(trained(), commands, ["a | b \n\t é ⚠️"]), TEXTS).state == "passed"


def test_text_that_comes_back_as_another_is_told_too() -> None:
    sound = trained()
    definition = json.loads(sound.definition) | {"normalizer": {"type": "NFKC"}}
    changing = Tokenizer(json.dumps(definition), sound.roles)
    found = only(CharacterAudit(changing, ["\ufb01nd x\u00b2", "find"], []).stamp(), "warning")
    assert "gives back as others: '\ufb01' (1) '\u00b2' (1)" in found.what


def test_begin_and_end_under_names_that_the_tokenizer_does_not_know(without_bytes: Tokenizer, tmp_path: Path) -> None:
    """They were looked up as [BOS] and [EOS], which are <s> and </s> there, and resolved to the unknown token."""
    with pytest.raises(UserError, match=r"eos_token '\[EOS\]' is not in the tokenizer's vocabulary; choose one"):
        Tokenizer(without_bytes.definition, SpecialRoles(bos_token="<s>", eos_token="[EOS]"))
    roles = SpecialRoles(bos_token="<unk>", eos_token="<unk>", pad_token="<pad>", unk_token="<unk>")
    spoilt = Tokenizer(without_bytes.definition, roles)
    split = split_of(tmp_path / "s", [[*spoilt.encode(text), spoilt.eos_id or 0] for text in TEXTS])
    found = audit_tokenizer(spoilt, {"pretrain": split}, answers=True).errors
    assert {(finding.where, finding.what) for finding in found} == {
        ("tokenizer.bos_token", "'<unk>' is the unknown token (id 3)"),
        ("tokenizer.eos_token", "'<unk>' is the unknown token (id 3)"),
    }


def test_marks_of_the_template_that_resolve_to_the_unknown_token(without_bytes: Tokenizer) -> None:
    tokenizer = Tokenizer(without_bytes.definition, without_bytes.roles, template_text("chatml"))
    found = [finding.what for finding in audit_tokenizer(tokenizer, {}, answers=True).errors]
    assert "the chat template writes '<|im_start|>', which resolves to the unknown token" in found


def test_a_special_token_whose_text_is_not_read_as_its_id() -> None:
    sound = trained(template=None)
    definition = json.loads(sound.definition)
    next(each for each in definition["added_tokens"] if each["content"] == "<instruction>")["id"] = 5
    found = only(audit_tokenizer(Tokenizer(json.dumps(definition), sound.roles), {}, answers=True))
    assert found.what == "'<instruction>' resolves to 1 other token, not to its id 5"


def test_an_end_token_that_is_unknown_or_never_learnt(tmp_path: Path) -> None:
    """A model that is never shown an end does not stop."""
    tokenizer = trained(template=None)
    ids = [tokenizer.encode(text) for text in TEXTS]
    end = tokenizer.eos_id or 0
    without = split_of(tmp_path / "without", ids)
    found = only(audit_tokenizer(tokenizer, {"pretrain": without}, answers=False))
    assert found.what.startswith("the end token '<eos>' stands nowhere in ")
    ended = [[*each, end] for each in ids]
    masks = [[True] * len(each) + [False] for each in ids]
    unlearnt = split_of(tmp_path / "unlearnt", ended, masks)
    assert "is never learnt in" in only(audit_tokenizer(tokenizer, {"finetune": unlearnt}, answers=True)).what
    learnt = split_of(tmp_path / "learnt", ended, [[True] * len(each) for each in ended])
    assert audit_tokenizer(tokenizer, {"pretrain": learnt, "finetune": learnt}, answers=True).state == "passed"
    unknown = trained(eos_token=None, template=None)
    assert only(audit_tokenizer(unknown, {}, answers=True)).where == "tokenizer.eos_token"
    assert only(audit_tokenizer(unknown, {}, answers=False), "warning").where == "tokenizer.eos_token"


def pair(asked: str, answer: str) -> Example:
    return Example((Message("user", asked), Message("assistant", answer)))


def test_held_out_pairs_that_stand_in_training_word_for_word() -> None:
    """All 99 of its pairs did, behind 93.94%."""
    pairs = [pair(f"show the file number {number}", f"cat {number}.txt") for number in range(99)]
    more = [pair(f"remove the folder {number} now", f"rmdir {number}") for number in range(50)]
    audit = LeakAudit(more + pairs, {"held": pairs}).result()
    assert audit.leaks == 99
    assert audit.refusal("audit.json").startswith("99 held-out examples leak into the examples (99 verbatim;")
    assert len(audit.stamp().errors) == 20
    assert LeakAudit(more, {"held": pairs}).stamp().state == "passed"
    assert LeakAudit(more, {}).stamp().state == "not run"


# --- l20-edu-135m ------------------------------------------------------------------------------------------------


def numbered(first: int, count: int, length: int = 40) -> list[list[int]]:
    """Documents that share no run of 13 tokens."""
    return [[(n * 131 + k * k * 7 + k * n) % 49_999 for k in range(length)] for n in range(first, first + count)]


def test_a_validation_stream_that_is_trainings_again(tmp_path: Path) -> None:
    """2.8731 was published as validation loss, and was training's."""
    documents = numbered(0, 60)
    train = split_of(tmp_path / "train", documents)
    reread = split_of(tmp_path / "reread", documents[:20])
    found = only(audit_validation({"pretrain": (train, reread)}))
    assert found.what == "validation reads the training stream: 20 of 20 documents are in it"
    own = split_of(tmp_path / "own", numbered(1000, 20))
    stamp = audit_validation({"pretrain": (train, own), "finetune": (train, None)})
    assert stamp.state == "passed"
    assert stamp.looked_at == "pretrain: 20 documents in 2,400 training tokens; finetune has no validation split"
    assert audit_validation({"pretrain": (train, None)}).not_run == "pretrain has no validation split"


def test_some_rows_and_near_duplicates_in_both_splits(tmp_path: Path) -> None:
    documents = numbered(0, 60, length=100)
    near = [*documents[7]]
    near[50] = 49_999
    short = [[1, 2, 3]]
    train = split_of(tmp_path / "train", documents + short)
    held = split_of(tmp_path / "held", [*numbered(1000, 20), documents[3], near, *short])
    found = overlap(train, held)
    assert (found.documents, found.same, found.near) == (23, 2, 1)
    mixed = split_of(tmp_path / "mixed", [[*documents[1][:50], *documents[2][:50]]])  # of two, half of each
    assert overlap(train, mixed) == Overlap(1, same=0, near=0, spread=1)
    assert audit_validation({"pretrain": (train, mixed)}).state == "passed"
    stamp = audit_validation({"pretrain": (train, held)})
    assert not stamp.errors
    assert [finding.what.split(" to validate")[0] for finding in stamp.findings] == [
        "2 documents of 23",
        "1 document of 23",
    ]


def test_blocks_of_training_are_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leveret.audit.splits.BLOCK", 17)
    documents = numbered(0, 30)
    found = overlap(split_of(tmp_path / "train", documents), split_of(tmp_path / "held", documents[::3]))
    assert (found.same, found.near) == (10, 0)
    pieces = [document[:30] for document in documents[::3]]
    found = overlap(split_of(tmp_path / "again", documents), split_of(tmp_path / "pieces", pieces))
    assert (found.same, found.near) == (0, 10)


QUESTION = "which of the seven rivers of the old kingdom runs north through the city of glass and salt"


def test_contamination_by_set_with_the_score_of_clean_examples() -> None:
    """Its 13-gram check was there, and was not run."""
    sets = {
        "rivers": [pair(QUESTION, "the Orrel"), pair("how many legs has a spider that is well, as a rule", "eight")],
        "clean": [pair("what is it that nobody in this corpus has ever asked of any one before", "this")],
    }
    corpus = [Document(f"It is written: {QUESTION}? The Orrel. So it was.", "web", "web:1"), Document("else", "web")]
    audit = ContaminationAudit(passages_of(sets))
    read_once(corpus, [audit])
    audit.look(texts_of([pair("a", "b")], "examples"))
    stamp = audit.stamp()
    found = only(stamp, "warning")
    assert found.where == "rivers"
    assert "1 example of 2 share a run of 13 words with 1 document" in found.what
    assert stamp.facts["sets"]["rivers"]["rows"] == [1]
    assert stamp.facts["sets"]["rivers"]["nearly_whole"] == [1]
    assert "which has 1 of them nearly whole" in found.what
    assert "name its file in data.decontaminate.sets" in found.mend
    phrase = Document(" ".join(QUESTION.split()[:14]) + " and no more", "web")
    made = ContaminationAudit(passages_of(sets), generated=["rivers"])
    read_once([phrase], [made])
    assert "with 1 document of training, which has none of them nearly whole" in made.stamp().findings[0].what
    assert "a generator makes it" in made.stamp().findings[0].mend
    assert made.stamp().facts["sets"]["rivers"]["nearly_whole"] == []
    clean = clean_subset([True, False], [1])
    assert (clean["examples"], clean["correct"], clean["left_out"]) == (1, 0, 1)
    assert (clean["of_all"], clean["accuracy"]) == (0.5, 0.0)
    assert clean_subset([True], [1])["accuracy"] is None
    assert ContaminationAudit([]).stamp().state == "not run"


def test_a_corpus_is_not_read_further_than_any_audit_wants() -> None:
    """Without held-out sets only the first documents' characters are looked at; with none that asks, nothing is."""
    corpus = (Document(f"text {number}", "texts") for number in range(3000))
    read_once(corpus, [LeakAudit([], {}), ContaminationAudit([])])
    assert next(corpus).text == "text 0"
    characters = CharacterAudit(trained(), [], [])
    read_once(corpus, [LeakAudit([], {}), ContaminationAudit([]), characters])
    assert characters.stamp().looked_at == "every character of 2,000 texts"
    assert len(list(corpus)) > 700


# --- stamps ------------------------------------------------------------------------------------------------------


def test_stamps_come_back_from_json_and_are_told_in_lines() -> None:
    finding = Finding("error", "it is wrong", "there", "mend it")
    for stamp in (Stamp("a", [finding], "all"), Stamp("b", looked_at="all"), Stamp("c", not_run="why", facts={"x": 1})):
        again = Stamp.of_json(json.loads(json.dumps(stamp.as_json())))
        assert (again.state, list(again.findings), again.facts) == (stamp.state, list(stamp.findings), stamp.facts)
    assert lines([Stamp("a", [finding], "all")])[1] == "  error: there: it is wrong; mend it"


def test_our_own_tokenizers_and_shards_pass(tmp_path: Path) -> None:
    tokenizer = trained()
    ids = render(tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": "find ."}]).ids
    assert tokenizer.eos_id in ids
    store = write(tmp_path / "shards", [ids] * 10)
    found = audit_tokenizer(tokenizer, {"finetune": store.split("train")}, answers=True)
    assert not found.errors
    assert ["'<system>'" in finding.what for finding in found.findings] == [True]
    without = audit_tokenizer(tokenizer, {"finetune": store.split("train")}, answers=True, system=False)
    assert without.state == "passed"
    assert without.looked_at.endswith(" tokens of text in front of system messages, and no example has any")
