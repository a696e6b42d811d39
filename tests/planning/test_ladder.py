"""A ladder of small runs moves a law, and the plan finds it again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leveret.cli.app import app
from leveret.errors import UserError
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.calibration import (
    LEAST_BAND,
    Calibration,
    Held,
    Rung,
    calibrate,
    find_calibration,
    fit_ladder,
    keep_calibration,
    ladder,
)
from leveret.planning.describe import expected_model
from leveret.planning.laws import BAND, FITS, Fit
from leveret.planning.machines import find_place
from leveret.planning.plan import Wish, make_plan
from leveret.recipe import Recipe, load_recipe

LAW = FITS["epoch-2024"]
SMALL = """
name: small
tokenizer: {kind: bpe, vocab_size: 512, special_tokens: ["<eos>"], eos_token: "<eos>"}
data: {sources: [{kind: generated, generator: shell-drills, licence: MIT}]}
model: {depth: 2, hidden_size: 64, max_position_embeddings: 64}
pretrain: {tokens: 50_000}
"""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_CONFIG", str(tmp_path / "settings"))


def rungs(truth: Fit, noise: tuple[float, ...] = (0.0, 0.0, 0.0)) -> tuple[Rung, ...]:
    sizes = [(1_000_000, 20_000_000), (2_000_000, 40_000_000), (4_000_000, 80_000_000)]
    return tuple(Rung(*size, truth.loss(*size) + off) for size, off in zip(sizes, noise, strict=True))


def test_what_was_moved_is_found_again() -> None:
    truth = LAW.flattened(0.5).moved(0.4, 7.0)
    found = fit_ladder(LAW, rungs(truth))
    assert (found.offset, found.efficiency) == (pytest.approx(0.4, abs=0.01), pytest.approx(7.0, rel=0.02))
    assert found.loss(16e6, 320e6) == pytest.approx(truth.loss(16e6, 320e6), abs=0.005)
    assert found.band == LEAST_BAND


MEASURED = {
    "textbooks": ((4.3793, 4.0747, 3.8105), 3.4675),
    "books": ((4.2378, 3.9483, 3.6795), 3.4156),
    "news": ((4.2675, 3.9640, 3.6746), 3.3500),
}
"""What benchmarks/plan_loss.py measured: the losses of its ladder, and of the run that was foretold (2026-11-22)."""


@pytest.mark.parametrize("text", MEASURED)
def test_a_four_times_larger_run_is_foretold_within_a_twentieth_of_a_nat(text: str) -> None:
    losses, measured = MEASURED[text]
    sizes = ((279_360, 1_298_432), (492_576, 2_288_640), (853_248, 3_965_952))
    found = fit_ladder(LAW, tuple(Rung(*size, loss) for size, loss in zip(sizes, losses, strict=True)))
    large = (1_722_048, 8_003_584)
    assert found.loss(*large) == pytest.approx(measured, abs=0.05)
    assert 0.1 < found.band_at(*large) < 0.12
    bands = [found.band_at(sizes[-1][0] * times**0.5, sizes[-1][1] * times**0.5) for times in (10, 100)]
    assert bands == pytest.approx([0.14, 0.25], abs=0.01)  # docs/how-to/plan.md
    for rival in found.rivals:  # no steepness is ruled out: a run's own loss moves by 0.02 with another seed
        off = [rival.loss(*size) - loss for size, loss in zip(sizes, losses, strict=True)]
        assert sum(each**2 for each in off) / 3 < 0.015**2


def test_the_band_grows_with_the_distance_from_the_ladder() -> None:
    """Whichever steepness is the true one of those that are tried: it holds the truth."""
    for steepness in (0.3, 0.5, 0.9):
        truth = LAW.flattened(steepness).moved(0.4, 7.0)
        found = fit_ladder(LAW, rungs(truth, (0.01, 0.0, -0.01)))
        near, far, farther = ((size * 1e6, size * 20e6) for size in (3, 100, 1000))
        assert LEAST_BAND <= found.band_at(*near) < 1.2 * LEAST_BAND
        assert 1.5 * LEAST_BAND < found.band_at(*far) < found.band_at(*farther)
        assert abs(found.loss(*far) - truth.loss(*far)) < found.band_at(*far)


def test_the_band_is_as_wide_as_the_runs_disagree() -> None:
    truth = LAW.moved(0.4, 7.0)
    small, large = (fit_ladder(LAW, rungs(truth, (0.0, each, 0.0))).band for each in (-0.2, -0.3))
    assert LEAST_BAND < small < large


def test_losses_that_do_not_fall_foretell_nothing() -> None:
    with pytest.raises(UserError, match="do not fall"):
        fit_ladder(LAW, rungs(LAW, (0.0, 5.0, 0.0)))


@pytest.mark.parametrize("name", ["leveret-124m", "l20-edu-135m"])
def test_a_ladder_takes_about_a_hundredth(name: str) -> None:
    recipe, _ = load_recipe(name, ["model.vocab_size=49152"])
    model, steps = expected_model(recipe), ladder(recipe, expected_model(recipe))

    def work(each: Recipe) -> float:
        assert each.pretrain is not None
        shape, length = expected_model(each), each.row_length()
        return (
            each.pretrain.tokens or (each.pretrain.steps or 0) * each.pretrain.batch_size * length
        ) * flops_per_token(shape, length)

    assert 0.003 < sum(map(work, steps)) / work(recipe) <= 0.01
    sizes = [count_parameters(expected_model(each)).total for each in steps]
    assert sizes == sorted(sizes)
    ratios = [(each.pretrain.tokens or 0) / size for each, size in zip(steps, sizes, strict=True) if each.pretrain]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.01)
    assert all(expected_model(each).num_hidden_layers == model.num_hidden_layers for each in steps)


def test_a_model_below_all_that_the_law_has_seen_is_told_of(tmp_path: Path) -> None:
    """And no loss is foretold that guessing would not have."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    plan = make_plan(Wish(recipe=str(path)), find_place("rtx-4090", mfu=0.1))
    assert plan.expected == pytest.approx(6.238, abs=1e-3)  # ln 512
    assert any("no model below 44M parameters" in note for note in plan.notes)
    assert not any("no model below" in note for note in make_plan(Wish(params=124e6), find_place("a100-40gb")).notes)


def test_text_of_which_nothing_is_held_out_ends_before_a_run_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "one.txt").write_text("One document, and no other. " * 400)
    (tmp_path / "small.yaml").write_text(SMALL.replace("kind: generated, generator: shell-drills", "paths: [one.txt]"))
    done = CliRunner().invoke(app, ["plan", "calibrate", "small.yaml", "--share", "0.5"])
    assert "nothing is held out of this text" in str(done.exception)
    assert not list(tmp_path.glob("runs/*/*/pretrain/metrics.jsonl"))


def test_a_plan_finds_its_calibration() -> None:
    """For models of the same corpus, tokenizer and way of training, of any size; not for others."""
    recipe, _ = load_recipe("leveret-124m")
    wish, place = Wish(params=124e6), find_place("a100-40gb")
    before = make_plan(wish, place)
    truth = LAW.flattened(0.5).moved(-0.2, 3.0)

    def train(each: Recipe) -> Held:
        assert each.pretrain is not None
        tokens = each.pretrain.tokens or 0
        return Held(tokens, truth.loss(count_parameters(expected_model(each)).total, tokens), 4.5)

    path = keep_calibration(recipe, calibrate(recipe, train, LAW))
    after = make_plan(wish, place)
    assert after.expected == pytest.approx(truth.loss(after.shape.parameters, after.cost.tokens), abs=0.01)
    assert before.band == BAND
    assert after.fit.band == LEAST_BAND < after.band
    assert after.bits_per_byte == pytest.approx(after.expected / 0.6931 / 4.5, rel=1e-3)
    assert "small runs of this recipe" in after.fit.source
    other, _ = load_recipe("parchment-166m")
    assert find_calibration(other, LAW.name) is None
    path.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(UserError, match="damaged"):
        find_calibration(recipe, LAW.name)


def test_a_calibration_is_read_as_it_was_written() -> None:
    recipe, _ = load_recipe("leveret-124m")
    made = Calibration(fit_ladder(LAW, rungs(LAW)), list(rungs(LAW)), 4.4)
    keep_calibration(recipe, made)
    assert find_calibration(recipe, LAW.name) == made
