"""The depth dial, through recipes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from leveret.errors import UserError
from leveret.model.counts import count_parameters
from leveret.recipe import Recipe, load_recipe, shipped_recipes, to_yaml


def recipe(folder: Path, model: dict[str, Any], pretrain: dict[str, Any] | None = None) -> Recipe:
    content = {
        "name": "dial",
        "tokenizer": {"kind": "bpe", "vocab_size": 512, "special_tokens": ["<e>"], "eos_token": "<e>"},
        "data": {"sources": [{"paths": ["a.txt"]}]},
        "model": model,
        "pretrain": pretrain or {},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(str(path))[0]


def test_the_dial_derives_everything(tmp_path: Path) -> None:
    small, large = (recipe(tmp_path, {"depth": depth}) for depth in (6, 12))
    assert (large.model.hidden_size, large.model.num_attention_heads, large.model.intermediate_size) == (768, 12, 3072)
    for made in (small, large):
        matrices = 12 * made.model.num_hidden_layers * made.model.hidden_size**2
        assert made.pretrain.tokens == 20 * matrices
        assert count_parameters(made.model.with_vocabulary(512)).non_embedding == pytest.approx(matrices, rel=0.01)
    assert large.pretrain.batch_size > small.pretrain.batch_size  # more tokens, larger batches
    assert large.pretrain.optimizer.lr < small.pretrain.optimizer.lr  # wider tables, smaller rates
    assert large.pretrain.optimizer.muon_lr == small.pretrain.optimizer.muon_lr


def test_what_the_recipe_says_is_kept_and_followed(tmp_path: Path) -> None:
    said = {"depth": 4, "hidden_size": 128, "mlp": "swiglu"}
    made = recipe(tmp_path, said, {"tokens": 1e6, "optimizer": {"kind": "adamw"}, "batch_size": 3})
    assert made.model.num_attention_heads == 2
    assert (made.model.mlp, made.model.intermediate_size) == ("swiglu", 512)
    assert (made.pretrain.tokens, made.pretrain.batch_size, made.pretrain.optimizer.kind) == (1_000_000, 3, "adamw")


def test_a_resolved_recipe_has_no_dial_left(tmp_path: Path) -> None:
    made = recipe(tmp_path, {"depth": 5})
    text = to_yaml(made)
    assert "depth" not in yaml.safe_load(text)["model"]
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "again.yaml"))[0] == made


@pytest.mark.parametrize("depth", ["deep", 0, 65, 2.5, True])
def test_a_wrong_depth_is_one_line(tmp_path: Path, depth: object) -> None:
    with pytest.raises(UserError, match=r"^model\.depth is a number of layers from 1 to 64, not "):
        recipe(tmp_path, {"depth": depth})


@pytest.mark.parametrize(
    ("model", "pretrain", "told"),
    [
        ({"hidden_size": "wide"}, {}, "hidden_size: Input should be a valid integer"),
        ({"hidden_size": 0}, {}, "hidden_size: Input should be greater than 0"),
        ({"max_position_embeddings": "long"}, {}, "max_position_embeddings: Input should be"),
        ({}, {"optimizer": "muon"}, "pretrain.optimizer: Input should be"),
        ({}, {"tokens": 1e6, "steps": 3}, "give exactly one of steps, tokens and epochs"),
        ({}, 3, "pretrain: Input should be"),
    ],
)
def test_other_mistakes_are_told_as_ever(tmp_path: Path, model: dict[str, Any], pretrain: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        recipe(tmp_path, {"depth": 4} | model, pretrain)


@pytest.mark.parametrize(("name", "size"), [("15m", 13.8e6), ("50m", 54.7e6), ("124m", 123.6e6), ("350m", 344.6e6)])
def test_our_own_recipes(name: str, size: float) -> None:
    ours = load_recipe(str(shipped_recipes()[f"leveret-{name}"]))[0]
    config = ours.model.with_vocabulary(ours.tokenizer.vocab_size or 50257)
    assert count_parameters(config).total == pytest.approx(size, rel=0.005)
