"""Our prompts and scores against those of lm-evaluation-harness itself, and our engine as a model of it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from benchmark_rows import FILES, HUB
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from tiny_models import ENGLISH, GPT2, made_tokenizer, write_run

import leveret
from leveret.api import LoadedModel
from leveret.cli.app import app
from leveret.errors import UserError
from leveret.evaluation.harness import LeveretLM, run_harness, write_tasks
from leveret.evaluation.likelihood import Likelihood
from leveret.evaluation.suite import evaluate_suite, judge, summarise
from leveret.export.write import export_model
from leveret.tasks.benchmarks import BENCHMARKS, Question

THEIRS = Path(lm_eval.__file__).parent / "tasks"
WHERE = {
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "hellaswag": "hellaswag/hellaswag",
    "lambada_openai": "lambada/lambada_openai",
    "piqa": "piqa/piqa",
    "winogrande": "winogrande/default",
    "openbookqa": "openbookqa/openbookqa",
    "copa": "super_glue/copa/default",
    "wsc273": "wsc273/default",
    "commonsense_qa": "commonsense_qa/default",
    "boolq": "super_glue/boolq/default",
}


def guess(context: str, continuation: str) -> tuple[float, bool]:
    """A likelihood that depends on nothing but the texts."""
    number = int(hashlib.sha256(f"{context}|{continuation}".encode()).hexdigest()[:8], 16)
    return -1.0 - number % 1000 / 100, number % 2 == 0


class Guesser(LM):  # type: ignore[misc]
    """Guesses, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[tuple[str, str]]] = {}

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        for request in requests:
            self.asked.setdefault(request.task_name, []).append(request.args)
        return [guess(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        raise AssertionError

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        raise AssertionError


def their_task(name: str, folder: Path) -> None:
    """The harness's own task, reading our rows."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in HUB[name]))
    task = {
        "include": str(THEIRS / f"{WHERE[name]}.yaml"),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def guessed(questions: list[Question]) -> list[list[Likelihood]]:
    return [[Likelihood(*guess(*pair), 0, 0) for pair in question.pairs] for question in questions]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Guesser, dict[str, Any]]:
    """One who guesses, after all of the harness's tasks, and the harness's results."""
    folder, guesser = tmp_path_factory.mktemp("theirs"), Guesser()
    for name in BENCHMARKS:
        their_task(name, folder)
    return guesser, run_harness(guesser, list(BENCHMARKS), include_path=folder)["results"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_and_scores_are_the_harness_s_own(name: str, scored: tuple[Guesser, dict[str, Any]]) -> None:
    guesser, theirs = scored[0], scored[1][name]
    questions = [BENCHMARKS[name].of_hub(row) for row in HUB[name]]
    assert guesser.asked[name] == [pair for question in questions for pair in question.pairs]
    rows = [judge(question, found) for question, found in zip(questions, guessed(questions), strict=True)]
    ours = summarise(rows, BENCHMARKS[name].normed)
    metrics = {key.removesuffix(",none"): value for key, value in theirs.items() if key.endswith(",none")}
    assert {key for key in ("acc", "acc_norm", "perplexity") if key in ours} == {
        key for key in metrics if not key.endswith("_stderr")
    }
    for metric in ("acc", "acc_norm", "perplexity"):
        if metric in ours:
            assert ours[metric] == pytest.approx(metrics[metric])
    for metric in ("acc_stderr", "acc_norm_stderr"):  # perplexity's is drawn there
        if metric in ours and ours[metric] is not None:
            assert ours[metric] == pytest.approx(metrics[metric])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_local_rows_are_the_same_questions(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert [benchmark.of_file(row) for row in FILES[name]] == [benchmark.of_hub(row) for row in HUB[name]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for name, rows in FILES.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{BENCHMARKS[name].file}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape: dict[str, Any] = {"initializer_range": 0.3} | (GPT2 if request.param == "gpt2" else {})
    run = write_run(folder / "run", made_tokenizer("bpe-gpt2", ENGLISH), "pretrain", **shape)
    export_model(str(run), folder / "exported")
    return folder / "exported"


def test_scores_and_likelihoods_are_those_of_the_harness_with_transformers(
    exported: Path, bench: Path, tmp_path: Path
) -> None:
    model = leveret.load(str(exported), "cpu")
    names = list(BENCHMARKS)
    folder = write_tasks(names, bench, tmp_path / "tasks")
    theirs = run_harness(
        HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3), names, include_path=folder
    )
    through = run_harness(model, names, include_path=folder)
    ours = evaluate_suite(model, names, bench=bench)
    for name in names:
        rows = [row for row in ours.rows if row["task"] == name]
        for found in (theirs, through):
            for metric in ("acc", "acc_norm"):
                if metric in ours.tasks[name]:
                    assert ours.tasks[name][metric] == found["results"][name][f"{metric},none"], (name, metric)
            samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            for row, sample in zip(rows, samples, strict=True):
                values = [float(answer[0][0]) for answer in sample["resps"]]
                assert row["loglikelihoods"] == pytest.approx(values, abs=1e-3), name


def test_the_verb_asks_through_the_harness(
    exported: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--suite", "copa,arc_easy", "--harness", "--bench", str(bench), "--output", str(tmp_path / "rows")]
    app(["evaluate", str(exported), *options, "--device", "cpu"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    ours = evaluate_suite(leveret.load(str(exported), "cpu"), ["copa", "arc_easy"], bench=bench)
    for name in ("copa", "arc_easy"):
        assert told["results"][name]["acc,none"] == ours.tasks[name]["acc"]
    assert told["weights_sha256"] == ours.facts["weights_sha256"]
    assert len((tmp_path / "rows").read_text().splitlines()) == len(ours.rows)


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


def test_texts_longer_than_the_context_are_measured_in_windows(exported: Path) -> None:
    lm = LeveretLM(leveret.load(str(exported), "cpu").engine)
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", prefix_token_id=lm_prefix(lm))
    texts = [asked("loglikelihood_rolling", " ".join(ENGLISH)), asked("loglikelihood_rolling", "To show")]
    assert lm.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-2)


def lm_prefix(lm: LeveretLM) -> int:
    tokenizer = lm.engine.tokenizer
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    assert start is not None
    return start


def test_answers_are_what_the_engine_generates(exported: Path) -> None:
    model: LoadedModel = leveret.load(str(exported), "cpu")
    lm = LeveretLM(model.engine)
    whole = model.generate("make the file", raw=True, max_new_tokens=9, temperature=0)
    stop = whole[len(whole) // 2 :][:2]
    greedy = {"max_gen_toks": 9, "do_sample": False, "temperature": 0.0}
    requests = [
        asked("generate_until", "make the file", greedy | {"until": [stop]}),
        asked("generate_until", "make the file", greedy | {"until": ["", "\0\0"]}),
    ]
    assert lm.generate_until(requests) == [whole[: whole.index(stop)], whole]


def test_an_unknown_task_is_one_line(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task 'arc'"):
        run_harness(leveret.load(str(exported), "cpu"), ["arc"], include_path=tmp_path)
