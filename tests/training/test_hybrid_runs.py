"""A hybrid of linear and softmax attention, from training to inspection, as a user types it."""

import csv
import json
import re
from pathlib import Path

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.training.announcement import layers_in_words

HYBRID = "model.hybrid={every: 2, mixer: {kind: attention, heads: 2, kv_heads: 1, window: 9}}"
SMALL = [HYBRID, "model.layers=4", "training.validate_every=4", "training.steps=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hybrid") / "run"


@pytest.mark.xdist_group("hybrid run")
def test_it_is_trained_and_goes_on_to_the_last_bit(cli, micro_recipe, folder, tmp_path):
    arguments = ["fit", "--recipe", micro_recipe, *SMALL]
    done = cli(*arguments, "--run-dir", folder)
    assert done.code == 0, done.err
    assert (
        "4 layers: 2 of mamba2 with dynamic memory, 2 of attention with a window of 9, width 16" in done.err + done.out
    )
    columns, *rows = csv.reader((folder / "metrics.csv").open())
    assert [name for name in columns if name.startswith("boundary_rate")] == ["boundary_rate.0", "boundary_rate.2"]
    short = cli("fit", "--recipe", micro_recipe, *SMALL, "training.steps=4", "--run-dir", tmp_path / "parts")
    assert short.code == 0, short.err
    assert cli(*arguments, "--run-dir", tmp_path / "parts", "--resume", "auto").code == 0
    loss = columns.index("loss")
    _, *again = csv.reader((tmp_path / "parts/metrics.csv").open())
    assert len(rows) > 6
    assert [row[loss] for row in again][:4] == [row[loss] for row in rows][:4]
    report = (folder / "report.md").read_text()
    assert re.findall(r"^\| (\d+) +\|.*%", report, re.MULTILINE) == ["0", "2"], "only blocks that have slots"


@pytest.mark.xdist_group("hybrid run")
def test_it_is_inspected_by_the_numbers_of_its_blocks(cli, folder, tmp_path):
    (tmp_path / "story.txt").write_text("alpha beta gamma delta kappa omega\n" * 3)
    inspect = ["inspect", "--checkpoint", folder, "--text", "story.txt"]
    done = cli(*inspect, "--layer", 1, "--out", "seen")
    assert done.code == 2
    assert "--layer is 1; it must be one that has slots: 0, 2." in done.err
    assert cli(*inspect, "--layer", 2, "--out", "seen").code == 0
    data = json.loads(re.search(r"const data = (.*);\n", (tmp_path / "seen/index.html").read_text())[1])  # type: ignore[index]
    assert [layer["index"] for layer in data["layers"]] == [0, 2]
    assert data["layer"] == 1, "the place in the list"


@pytest.mark.xdist_group("hybrid run")
def test_it_writes_and_is_evaluated_beyond_its_window(cli, folder, tmp_path):
    prompts = ["alpha", "beta gamma delta kappa omega state slot merge token alpha beta", "slot merge"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    done = cli(
        "generate", "--checkpoint", folder, "--max-tokens", 12, "--temperature", 0, "--prompts", "prompts.txt"
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [json.loads(line)["prompt"] for line in done.out.splitlines()] == prompts
    done = cli("eval", "--checkpoint", folder, "--tasks", "perplexity-by-position", "--lengths", "48", "--limit", 2)
    assert done.code == 0, done.err
    assert "48" in done.out


def test_how_a_model_is_described():
    assert layers_in_words(load(find("transformer-130m")).recipe.model) == "14 layers of attention"
    assert layers_in_words(load(find("tiny")).recipe.model) == "2 layers of mamba2 with dynamic memory"
