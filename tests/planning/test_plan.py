"""What a plan says: cost and memory by the same functions as training, published figures, and what is impossible."""

import math
import os
from pathlib import Path

import pytest
import torch
import yaml

from leveret.errors import UserError
from leveret.hardware.peak import GPUS, find_gpu
from leveret.hardware.prices import read_prices
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.cost import Machine, training_cost
from leveret.planning.laws import MOST_EPOCHS
from leveret.planning.machines import find_place
from leveret.planning.plan import BYTES_A_TOKEN, LEAST_RATIO, Wish, count, make_plan, read_count
from leveret.planning.speeds import Row, find_speed, keep_speed, read_speeds
from leveret.planning.telling import facts, render
from leveret.recipe import load_recipe
from leveret.training.config import TrainingConfig
from leveret.training.memory import training_memory

GPT2 = load_recipe("gpt2-124m")[0]
A100 = Machine("a100-80gb", 8, 312e12, 79 * 2**30, 14 / 8, 0.56, "llm.c")


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEVERET_CONFIG", str(tmp_path / "settings"))
    return tmp_path / "settings"


def test_llm_cs_figures() -> None:
    """124M on 8 A100s: 10B tokens in 94 minutes, 52% of the peak, $20 (llm.c's discussion 481).

    52% counts 6 operations for each parameter and token; with attention's as well, as we count, it is 56%.
    """
    model = GPT2.model.with_vocabulary(50_304)
    config = TrainingConfig(steps=18_865, batch_size=512, micro_batch_size=64)
    cost = training_cost(model, config, 1024, 18_865, A100)
    assert cost.tokens == pytest.approx(10e9, rel=0.015)
    assert cost.seconds / 60 == pytest.approx(94, rel=0.02)
    assert 6 * 124.4e6 * cost.tokens / cost.seconds / (8 * 312e12) == pytest.approx(0.52, abs=0.01)
    assert cost.dollars == pytest.approx(20, rel=0.11)
    assert cost.memory["total"] < 80e9


@pytest.mark.parametrize(
    ("name", "gpu", "hours", "dollars"), [("parchment-166m", "a100-40gb", 14.8, 46), ("l20-edu-135m", "l20", 72, None)]
)
def test_reference_models_take_their_published_hours(name: str, gpu: str, hours: float, dollars: float | None) -> None:
    recipe, _ = load_recipe(name)
    place = find_place(gpu)
    length, config = recipe.row_length(), recipe.pretrain
    assert config is not None
    model = recipe.model.with_vocabulary({"parchment-166m": 100_277, "l20-edu-135m": 49_152}[name])
    machine = place.machine(flops_per_token(model, length, config.gradient_checkpointing))
    steps = config.total_steps(0, length)
    cost = training_cost(model, config, length, steps, machine)
    assert cost.seconds / 3600 == pytest.approx(hours, rel=0.03)
    assert cost.dollars == (None if dollars is None else pytest.approx(dollars, rel=0.04))


def test_recomputing_makes_the_layers_products_twice() -> None:
    model = GPT2.model.with_vocabulary(50_304)
    plain, head = flops_per_token(model, 1024), 6 * 50_304 * 768
    assert flops_per_token(model, 1024, "full") - head == pytest.approx((plain - head) * 8 / 6, abs=2)
    assert flops_per_token(model, 1024, "selective") == plain


@pytest.mark.parametrize("name", ["smallm-20m", "tinyllm-cli-67m", "gpt2-124m", "l20-edu-135m", "parchment-166m"])
def test_memory_is_training_memory(name: str) -> None:
    """The same estimate as training goes by, which benchmarks/train_memory.py holds against what is measured."""
    recipe, _ = load_recipe(name)
    config, model = recipe.pretrain, recipe.model.with_vocabulary(50_000)
    assert config is not None
    config = config.model_copy(update={"micro_batch_size": 4})
    machine = Machine("any", 1, 1e14, None, None, 0.5, "")
    parts = training_cost(model, config, recipe.row_length(), 10, machine).memory
    there = training_memory(model, config, recipe.row_length(), 4, torch.bfloat16, torch.device("cuda"))
    assert {part: parts[part] for part in there if part != "total"} == {k: v for k, v in there.items() if k != "total"}
    assert {"weights", "gradients", "optimizer", "activations", "logits", "cache"} <= parts.keys()
    assert parts["total"] == there["total"] + parts["cache"]
    cache = 2 * model.num_hidden_layers * model.kv_heads * model.head_width * model.max_position_embeddings * 4
    assert parts["cache"] == cache


def test_auto_takes_the_largest_micro_batch_that_fits_and_many_gpus_share() -> None:
    model, config = GPT2.model.with_vocabulary(50_304), TrainingConfig(steps=1, batch_size=96, micro_batch_size="auto")
    rows = {
        gib: training_cost(model, config, 1024, 1, Machine("g", 1, 1e14, gib * 2**30, None, 0.5, "")).micro_batch_size
        for gib in (12, 40, 80)
    }
    assert rows[12] < rows[40] < rows[80] <= 96
    four = training_cost(model, config, 1024, 1, Machine("g", 4, 1e14, 80 * 2**30, None, 0.5, ""))
    assert four.micro_batch_size <= 24
    with pytest.raises(
        UserError, match=r"1 rows at once take .*what would work: gradient_checkpointing: full, or a sm"
    ):
        training_cost(model, config, 1024, 1, Machine("g", 1, 1e14, 2**30, None, 0.5, ""))


def test_a_budget_becomes_a_plan_that_keeps_to_it() -> None:
    place = find_place("a100-40gb")
    plans = [make_plan(Wish(budget=budget), place) for budget in (20, 55, 200)]
    for budget, plan in zip((20, 55, 200), plans, strict=True):
        assert plan.cost.dollars is not None
        assert 0.97 * budget < plan.cost.dollars <= budget * 1.001
        assert plan.cost.memory["total"] < 40 * 2**30
        assert plan.cost.seconds_range[0] < plan.cost.seconds < plan.cost.seconds_range[1]
        assert "another tool's" in plan.machine.mfu_source, "until we have measured one"
        assert plan.cost.tokens == plan.steps * plan.shape.config.batch_size * 1024
    losses, sizes = [plan.expected for plan in plans], [plan.shape.parameters for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert sizes == sorted(sizes)


def test_the_written_recipe_is_the_planned_one(tmp_path: Path) -> None:
    place = find_place("a100-40gb")
    for wish in (Wish(budget=55), Wish(recipe="parchment-166m"), Wish(recipe="smallm-20m", tokens=1e9)):
        plan = make_plan(wish, find_place("a100-40gb", mfu=0.3) if wish.recipe else place)
        path = tmp_path / "my.yaml"
        path.write_text(plan.text)
        found, _ = load_recipe(str(path))
        assert found.model == plan.shape.recipe.model
        assert found.pretrain == plan.shape.recipe.pretrain
        assert found.name == plan.shape.recipe.name
        assert found.pretrain is not None
        assert found.pretrain.total_steps(0, found.row_length()) == plan.steps


def test_data_that_runs_out_is_repeated_and_no_more_than_sixteen_times() -> None:
    place = find_place("a100-40gb")
    plain, some, few = (make_plan(Wish(budget=55, data_tokens=each), place) for each in (1e12, 1e9, 1e8))
    assert plain.expected < some.expected < few.expected
    assert few.epochs == pytest.approx(MOST_EPOCHS, rel=0.01)
    assert any("used up" in note for note in few.notes)
    assert few.cost.dollars is not None
    assert few.cost.dollars < 30


@pytest.mark.parametrize(
    ("wish", "options", "message"),
    [
        (Wish(budget=0.01), {}, r"^\$0\.01 is 12 s on 1 x a100-40gb, too little for .*that takes .*, \$0\.\d\d$"),
        (Wish(params=30e9, hours=100), {}, r"no measured speed of such a model .*--probe.*--mfu"),
        (Wish(params=60e9, tokens=1e9), {"mfu": 0.4}, r"GiB, and a a100-40gb has 39; what would work: "),
        (Wish(recipe="gpt2-124m", hours=1, tokens=1e10), {}, r"^1 h is .*too little for 10B tokens.*: that takes "),
        (Wish(params=124e6, fit="kaplan"), {}, "kaplan is not one of epoch-2024"),
        (Wish(), {}, "say what there is"),
    ],
)
def test_impossible_wishes_are_one_line_that_says_what_would_work(
    wish: Wish, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_plan(wish, find_place("a100-40gb", mfu=options.get("mfu")))
    assert "\n" not in str(caught.value)


def test_a_price_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(UserError, match="no price of a l20 is known"):
        make_plan(Wish(budget=10), find_place("l20"))
    assert make_plan(Wish(hours=72), find_place("l20")).cost.dollars is None


def test_prices_are_the_users_if_there_are_any(settings: Path, tmp_path: Path) -> None:
    shipped = read_prices()
    assert shipped.prices.keys() <= {gpu.alias for gpu in GPUS}
    own = {"date": "2026-12-01", "prices": {"l20": {"dollars_an_hour": 0.5, "source": "me", "date": "2026-12-01"}}}
    settings.mkdir()
    (settings / "prices.yaml").write_text(yaml.safe_dump(own))
    assert find_place("l20").price == 0.5
    assert find_place("a100-40gb").price is None
    other = tmp_path / "other.yaml"
    other.write_text("date: 2026-12-01\nprices: {l20: {dollars: 1}}")
    with pytest.raises(UserError, match="no price list"):
        find_place("l20", prices=other)


@pytest.mark.parametrize(
    ("name", "near"), [("a100", "a100-40gb"), ("4090", "rtx-4090"), ("h1000", "h100"), ("A100-40BG", "a100-40gb")]
)
def test_a_wrong_gpu_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean .*{near}"):
        find_gpu(name)


def test_gpus_go_by_alias_and_by_the_drivers_name() -> None:
    for gpu in GPUS:
        assert find_gpu(gpu.alias.upper()) is find_gpu(gpu.name) is gpu


def test_speeds_are_never_guessed() -> None:
    rows, a100 = read_speeds(), find_gpu("a100-40gb")
    assert not any(row.ours for row in rows), "no GPU of ours is measured yet"
    near = find_speed(a100, 1.028e9, rows)
    assert near.mfu == pytest.approx(75_000 * 1.028e9 / 312e12)
    assert near.low < near.mfu < near.high
    assert near.high > 0.5, "another tool was more than twice as fast on that chip"
    for gpu, flops in (("a100-40gb", 1e8), ("a100-40gb", 1e11), ("b200", 1e9)):
        with pytest.raises(UserError, match="no measured speed"):
            find_speed(find_gpu(gpu), flops, rows)


def test_our_own_measurement_comes_first() -> None:
    row = Row(gpu="a100-40gb", model="ours", flops_per_token=1e9, tokens_per_second=100_000, date="2026-12-01",
              source="probed", ours=True)  # fmt: skip
    keep_speed(row)
    keep_speed(row.model_copy(update={"tokens_per_second": 125_000.0}))
    found = find_place("a100-40gb").machine(1.1e9)
    assert found.mfu == pytest.approx(125_000 * 1e9 / 312e12)
    assert found.mfu_source.startswith("ours")
    assert find_place("a100-40gb").machine(6e9).mfu_source.startswith("another tool's")


def test_published_rows_are_counted_as_we_count() -> None:
    shapes = {"parchment-166m": 100_277, "l20-edu-135m": 49_152, "gpt2-124m": 50_304}
    counted = {}
    for name, vocabulary in shapes.items():
        recipe, _ = load_recipe(name)
        assert recipe.pretrain is not None
        model = recipe.model.with_vocabulary(vocabulary)
        counted[name] = flops_per_token(model, recipe.row_length(), recipe.pretrain.gradient_checkpointing)
    known = {"parchment": "parchment-166m", "l20-edu": "l20-edu-135m", "llm.c": "gpt2-124m"}
    seen = 0
    for row in read_speeds():
        for word, name in known.items():
            if row.model.startswith(word):
                assert row.flops_per_token == pytest.approx(counted[name], rel=0.005)
                seen += 1
    assert seen == 4


@pytest.mark.parametrize("width", [30, 49, 80, 120])
def test_a_plan_fits_into_any_width(width: int) -> None:
    text = render(make_plan(Wish(budget=55), find_place("a100-40gb")), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("weights", "gradients", "optimizer", "activations", "logits", "cache", "shards", "(80%)"):
        assert word in text


def test_the_json_says_all_of_it() -> None:
    told = facts(make_plan(Wish(budget=55), find_place("a100-40gb")))
    for key in ("steps", "seconds", "dollars", "mfu_source", "loss", "loss_band", "loss_source", "bits_per_byte"):
        assert told[key]
    assert told["calibrated"] is False


def test_counts_are_read_as_they_are_written() -> None:
    assert [read_count(text) for text in ("10B", "124m", "1.5e9", "2_000", "3k")] == [1e10, 124e6, 1.5e9, 2000, 3000]
    assert all(read_count(count(number)) == pytest.approx(number, rel=0.005) for number in (12, 3456, 7.8e7, 9e12))
    for wrong in ("many", "-1", "0", "", "1BB1"):
        with pytest.raises(UserError, match="no number above zero"):
            read_count(wrong)


@pytest.mark.long
@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_bytes_of_a_token() -> None:
    import pyarrow.parquet as parquet

    from leveret.tokenizer.config import TokenizerConfig
    from leveret.tokenizer.load import load_tokenizer

    data = Path(os.environ["LEVERET_DATA"])
    texts = parquet.read_table(data / "text" / "openstax.parquet")["text"].to_pylist()[:20]
    for name, file in (("gpt2", "r50k_base"), ("cl100k_base", "cl100k_base")):
        ranks = str(data / "tokenizers" / f"{file}.tiktoken")
        config = TokenizerConfig(kind="tiktoken", source=name, ranks_file=ranks, eos_token="<|endoftext|>")
        tokenizer = load_tokenizer(config, data)
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        assert sum(len(text.encode()) for text in texts) / tokens == pytest.approx(BYTES_A_TOKEN[name], rel=0.05)


def test_the_least_ratio_holds() -> None:
    plan = make_plan(Wish(budget=3), find_place("a100-40gb"))
    assert plan.cost.tokens >= 0.99 * LEAST_RATIO * count_parameters(plan.shape.model).total
    assert isinstance(plan.shape.model, ModelConfig)
    assert math.isfinite(plan.expected)
