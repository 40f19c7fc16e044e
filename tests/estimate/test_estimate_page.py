"""What docs/estimate.md shows is what the command prints today."""

import re
from pathlib import Path

import pytest
import torch

from dla_train.config.catalog import find, shipped
from dla_train.config.load import load
from dla_train.estimate.flops import model_work, training_flops
from dla_train.models import LanguageModel

PAGE = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text()
EXAMPLES = re.findall(r"^```console\n\$ dla-train (estimate .*)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)


def test_there_are_four_examples():
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_an_example_is_what_the_command_prints(cli, command, printed):
    assert cli(*command.split()).out == printed


def _cells(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]


def test_the_table_is_what_the_command_prints(cli):
    printed = cli("recipes", "--costs").out
    assert len(_cells(printed)) == len(shipped())
    assert printed in PAGE


@pytest.mark.parametrize("name", ["gdn-dla-790m", "mamba2-loglinear-780m", "transformer-130m"])
def test_a_row_is_what_the_model_has(cli, name):
    recipe = load(find(name)).recipe
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    work = model_work(recipe.model, recipe.data.window)
    past = [work[part].training for part in ("reader", "plan", "softmax") if part in work]
    (row,) = [cells for cells in _cells(cli("recipes", "--costs").out) if cells[0] == f"`{name}`"]
    assert row[1:] == [
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        f"{recipe.data.window:,}",
        f"{sum(part.forward for part in work.values()) / 1e6:,.0f}",
        f"{training_flops(recipe.model, recipe.data.window) / 1e6:,.0f}",
        f"{sum(past) / 1e6:,.0f}",
    ]
