from pathlib import Path

import pytest
import torch

from dla_train.config.catalog import find, shipped
from dla_train.config.load import load
from dla_train.models import LanguageModel

RECIPES = [recipe.name for recipe in shipped()]


def test_the_demo_recipe_is_shipped():
    assert "tiny" in RECIPES


def test_every_file_of_the_folder_is_found():
    folder = Path(__file__).parents[2] / "recipes"
    assert sorted(RECIPES) == sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_model(name):
    recipe = load(find(name)).recipe
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert recipe.description
    assert "\n" not in recipe.description


def test_recipes_are_listed_with_one_line_each(cli):
    lines = cli("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == RECIPES
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_name_gets_the_nearest(cli):
    done = cli("fit", "--recipe", "tyni")
    assert done.code == 2
    assert "there is no recipe 'tyni'. Did you mean tiny? Shipped recipes: " in done.err


def test_a_missing_file_is_named(cli):
    done = cli("show", "nowhere/mine.yaml")
    assert done.code == 2
    assert "cannot read the recipe nowhere/mine.yaml: No such file or directory" in done.err
