"""Numbers in recipes and overrides, as people write them."""

from pathlib import Path

import pytest

from leveret.errors import UserError
from leveret.recipe import load_recipe, to_yaml


@pytest.mark.parametrize("written", ["2e6", "2E+6", "2_000_000", "2000000", "2.0e6", "2000000.0"])
def test_whole_numbers(written: str) -> None:
    assert load_recipe("leveret-15m", [f"pretrain.tokens={written}"])[0].pretrain.tokens == 2_000_000


@pytest.mark.parametrize("written", ["1e-3", "1.E-3", ".1e-2", "0.001", "1_0e-4"])
def test_fractions(written: str) -> None:
    assert load_recipe("leveret-15m", [f"pretrain.optimizer.lr={written}"])[0].pretrain.optimizer.lr == 0.001


@pytest.mark.parametrize("written", ["2.5", "1e", "e3", "many", "1e-3"])
def test_what_is_no_whole_number_is_a_mistake(written: str) -> None:
    with pytest.raises(UserError, match=r"pretrain\.tokens: Input should be .*integer"):
        load_recipe("leveret-15m", [f"pretrain.tokens={written}"])


def test_an_override_reaches_into_what_a_resolved_recipe_leaves_null(tmp_path: Path) -> None:
    resolved = load_recipe("leveret-15m")[0].model_copy(update={"finetune": None})
    (tmp_path / "recipe.yaml").write_text(to_yaml(resolved))
    changes = ["finetune.examples=[{paths: [pairs.jsonl]}]", "finetune.steps=5", "tokenizer.template=chatml"]
    found = load_recipe(str(tmp_path / "recipe.yaml"), changes)[0].finetune
    assert found is not None
    assert found.steps == 5
