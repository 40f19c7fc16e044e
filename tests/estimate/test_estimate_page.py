"""What docs/estimate.md shows is what the command prints today."""

import re
from pathlib import Path

import pytest
import torch

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.flops import model_work
from dla_train.models import LanguageModel

PAGE = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text()
EXAMPLES = re.findall(r"^```console\n\$ dla-train (estimate .*)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


def test_there_are_four_examples_and_all_recipes():
    assert len(EXAMPLES) == 4
    assert len(ROWS) == 21


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_an_example_is_what_the_command_prints(cli, command, printed):
    assert cli(*command.split()).out == printed


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table_is_what_the_model_has(row):
    recipe = load(find(row[0].strip("`"))).recipe
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    work = model_work(recipe.model, recipe.data.window)
    past = [work[part].training for part in ("reader", "plan", "softmax") if part in work]
    assert row[1:] == [
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        f"{recipe.data.window:,}",
        f"{sum(part.forward for part in work.values()) / 1e6:,.0f}",
        f"{sum(part.training for part in work.values()) / 1e6:,.0f}",
        f"{sum(past) / 1e6:,.0f}",
    ]
