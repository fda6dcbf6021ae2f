"""Recipes: what a request leaves out is trained as it was measured."""

from __future__ import annotations

import msgspec
import pytest

from memos_vllm.errors import BadInput
from memos_vllm.parameter.recipe import REST_ACCURACY, Recipe, recipe_from
from memos_vllm.server.schemas_adapters import RecipeBody


def test_recipes_are_checked() -> None:
    with pytest.raises(BadInput, match="rank must be from 1 to 512; epochs"):
        recipe_from({"rank": 0, "epochs": 0})
    with pytest.raises(BadInput, match="unknown field"):
        recipe_from({"ranks": 8})
    assert recipe_from({"rank": 8}).rate(256) == pytest.approx(6e-3)


def test_less_is_asked_of_what_stays_where_something_is_forgotten() -> None:
    assert recipe_from({}).min_accuracy == 0.9 and recipe_from({}, forgets=True).min_accuracy == REST_ACCURACY < 0.9
    assert recipe_from({"min_accuracy": 0.95}, forgets=True).min_accuracy == 0.95
    assert recipe_from({}, forgets=True) == msgspec.structs.replace(Recipe(), min_accuracy=REST_ACCURACY)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_request_without_settings_has_the_defaults(forgets: bool) -> None:
    fields = RecipeBody().fields(max_rank=64)
    assert recipe_from(fields, forgets=forgets) == recipe_from({"device": "cpu"}, forgets=forgets)


def test_a_request_has_what_it_says() -> None:
    said = {"rank": 4, "epochs": 3, "learning_rate": 0.01, "replay_weight": 2.0, "seed": 7, "min_accuracy": 0.5}
    assert RecipeBody.model_validate(said).fields(max_rank=4) == {**said, "device": "cpu"}


def test_ranks_fit_the_server() -> None:
    assert RecipeBody().fields(max_rank=8)["rank"] == 8
    with pytest.raises(BadInput, match="rank is 9; this server runs adapters up to rank 8"):
        RecipeBody(rank=9).fields(max_rank=8)
