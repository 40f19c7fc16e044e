"""`initial_weights`: a run that begins with the weights of another one, or of an exported model."""

import csv
import random
import shutil
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dla_train import load_model
from dla_train.models import LanguageModel, initialize, model_config_from_dict
from dla_train.models.slot_weight import SlotWeight
from dla_train.training.initial_weights import InitialWeights


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "parent"


@pytest.fixture
def parent(kept, cli, micro_recipe):
    """A finished run of 6 steps, made once and copied."""
    if not kept.exists():
        assert cli("fit", "--recipe", micro_recipe, "training.steps=6", "--run-dir", kept).code == 0
    shutil.copytree(kept, "parent")
    return Path("parent")


def child(cli, recipe, *settings):
    return cli("fit", "--recipe", recipe, "training.steps=4", "schedule.warmup=2", "--run-dir", "child", *settings)


def losses(folder, split="train"):
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == split]


def initial_state(cli, recipe, *settings):
    """What a run of one step with no learning rate to speak of leaves: its initial weights."""
    done = cli(
        "fit", "--recipe", recipe, "training.steps=1", "schedule.warmup=0", "optimizer.lr=1e-30", "--run-dir", "still",
        *settings,
    )  # fmt: skip
    assert done.code == 0, done.err
    return load_model("still").state_dict(), done


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_a_run_begins_with_the_weights_of_another_at_step_0(cli, micro_recipe, parent, kind):
    source = {"run": parent, "checkpoint": parent / "checkpoints/step-00000004", "export": Path("exported")}[kind]
    if kind == "export":
        assert cli("export", "--checkpoint", parent, "--to", source).code == 0
    state, done = initial_state(cli, micro_recipe, f"initial_weights={source}")
    assert f"initial weights: those of {source}" in done.err
    wanted = load_model(source).state_dict()
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12)
    assert losses(Path("still"), "validation")[0] < losses(parent, "train")[0] - 0.1, "no better than drawn weights"


def test_a_single_state_model_goes_on_as_the_same_function(cli, micro_recipe):
    """Whatever memory it gets: slots that weigh 1 add up to one state."""
    single = "model.mixer.memory=single"
    assert cli("fit", "--recipe", micro_recipe, "training.steps=6", "--run-dir", "parent", single).code == 0
    _, done = initial_state(cli, micro_recipe, "initial_weights=parent", "model.mixer.memory=fenwick")
    assert "(but for the fenwick memory, which begins as one state)" in done.err
    before, after = load_model("parent"), load_model("still")
    assert any(isinstance(module, SlotWeight) for module in after.modules())
    tokens = torch.randint(0, 300, (2, 70), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after(tokens), before(tokens), rtol=1e-5, atol=1e-5)
    # And the memory learns from there.
    assert child(cli, micro_recipe, "initial_weights=parent", "model.mixer.memory=fenwick").code == 0
    weights = [module.weight for module in load_model("child").modules() if isinstance(module, SlotWeight)]
    assert all(weight.abs().max() > 0 for weight in weights)


def test_settings_that_differ_are_said_and_drawing_ones_are_not(cli, micro_recipe, parent):
    done = child(cli, micro_recipe, "initial_weights=parent", "model.norm_eps=1e-6", "model.init_std=0.5")
    assert done.code == 0, done.err
    assert "trained with other settings: model.norm_eps 1e-05 there and 1e-06 here." in done.err


def test_going_on_needs_the_source_no_more(cli, micro_recipe, parent):
    assert child(cli, micro_recipe, "initial_weights=parent").code == 0
    parent.rename("elsewhere")
    again = ("--resume", "auto", "initial_weights=parent")
    done = child(cli, micro_recipe, *again, "training.steps=6")
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    other = child(cli, micro_recipe, *again[:2], "initial_weights=elsewhere", "training.steps=6")
    assert other.code == 2
    assert "initial_weights parent there and elsewhere here" in other.err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.hidden=32", "embedding.weight is [300, 16] there and [300, 32] here (model.hidden 16 there and 32"),
        ("model.layers=3", "blocks.2.mixer_norm.weight is absent there and [16] here (model.layers 2 there and"),
        ("model.layers=1", "blocks.1.mixer_norm.weight is [16] there and absent here"),
        ("model.tie_embeddings=true", "it has one matrix for embedding and head, and they have two"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(cli, micro_recipe, parent, setting, said):
    done = child(cli, micro_recipe, "initial_weights=parent", setting)
    assert done.code == 2
    assert "initial_weights: the weights of parent/checkpoints/step-00000006 do not fit this model: " in done.err
    assert said in done.err
    assert not Path("child").exists()


def test_a_place_without_weights_is_refused(cli, micro_recipe):
    done = child(cli, micro_recipe, "initial_weights=nowhere")
    assert done.code == 2
    assert "initial_weights: there is no folder nowhere." in done.err
    assert not Path("child").exists()


def test_an_export_that_lacks_weights_is_refused(cli, micro_recipe, parent):
    """And its gaps are not filled with drawn ones."""
    assert cli("export", "--checkpoint", parent, "--to", "exported").code == 0
    path = Path("exported/model.safetensors")
    weights = load_file(path)
    del weights["model.blocks.1.mixer_norm.weight"]
    save_file(weights, path)
    done = child(cli, micro_recipe, "initial_weights=exported")
    assert done.code == 1
    assert (
        "exported is damaged: its weights do not fit its config.json: blocks.1.mixer_norm.weight is absent" in done.err
    )


def test_tokens_that_meant_something_else_are_refused(cli, micro_recipe, parent, tmp_path):
    other = tmp_path / "other.txt"
    draw = random.Random(1)
    words = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(20)]
    other.write_text("\n".join(" ".join(draw.choices(words, k=9)) for _ in range(500)))
    done = child(cli, micro_recipe, "initial_weights=parent", f"data.path={other}")
    assert done.code == 2
    assert "was trained with another tokenizer (parent/tokenizer.json)" in done.err
    assert not Path("child").exists()


def test_a_branch_takes_its_weights_from_one_place(cli, micro_recipe, parent):
    done = child(cli, micro_recipe, "initial_weights=parent", "--resume", parent, "training.steps=8")
    assert done.code == 2
    assert "Leave out either initial_weights or --resume PATH." in done.err


def test_the_threshold_is_the_one_that_the_recipe_sets(cli, micro_recipe, parent):
    there = load_model(parent).state_dict()
    kept, _ = initial_state(cli, micro_recipe, f"initial_weights={parent}")
    shutil.rmtree("still")
    other, done = initial_state(cli, micro_recipe, f"initial_weights={parent}", "model.mixer.memory.threshold=0.25")
    assert "model.mixer.memory.threshold 0.9 there and 0.25 here. Those of the recipe hold, from which its" in done.err
    names = [name for name in there if name.endswith(".memory.threshold")]
    assert names
    for name in names:
        assert torch.equal(kept[name], there[name])
        assert (other[name] == 0.25).all()


def test_calibrated_thresholds_stay_and_that_is_said(cli, micro_recipe):
    """The message said that the recipe's settings hold, and without calibration that would be `threshold`."""
    rate = "model.mixer.memory.calibrate_rate=0.2"
    assert cli("fit", "--recipe", micro_recipe, "training.steps=4", rate, "--run-dir", "calibrated").code == 0
    state, done = initial_state(cli, micro_recipe, "initial_weights=calibrated")
    calibrated = load_model("calibrated").state_dict()
    names = [name for name in state if name.endswith(".memory.threshold")]
    assert names
    assert all(torch.equal(state[name], calibrated[name]) for name in names)
    assert "0.2 there and (absent) here. Those of the recipe hold; its thresholds begin where those weights" in done.err


def two_memories(threshold):
    memory = f"{{kind: dynamic, capacity: 3, threshold: {threshold}, calibrate_rate: 0.2}}"
    mixer = f"{{kind: mamba2, heads: 2, head_dim: 8, state_dim: 8, memory: {memory}}}"
    return f"model.hybrid={{every: 2, mixer: {mixer}}}"


def test_only_blocks_whose_threshold_the_recipe_changes_begin_at_it(cli, micro_recipe):
    rate = "model.mixer.memory.calibrate_rate=0.2"
    fit = ("fit", "--recipe", micro_recipe, "training.steps=4", rate, two_memories(0.6), "--run-dir", "calibrated")
    assert cli(*fit).code == 0
    calibrated = load_model("calibrated").state_dict()
    hybrid = two_memories(0.5).replace("0.2", "null")
    state, done = initial_state(cli, micro_recipe, "initial_weights=calibrated", hybrid)
    first, second = (f"blocks.{block}.mixer.memory.threshold" for block in (0, 1))
    assert torch.equal(state[first], calibrated[first])
    assert (state[second] == 0.5).all()
    assert not (calibrated[second] == 0.5).any()
    assert "model.hybrid.mixer.memory.threshold 0.6 there and 0.5 here" in done.err


def test_slots_of_another_kind_of_memory_have_another_meaning(monkeypatch):
    fixed, fenwick = (
        {"kind": "mamba2", "heads": 2, "memory": {"kind": kind, "capacity": 4}} for kind in ("fixed", "fenwick")
    )
    there, here = (
        model_config_from_dict(
            {"vocab_size": 9, "hidden": 8, "layers": 2, "mixer": fixed, "hybrid": {"layers": [block], "mixer": fenwick}}
        )
        for block in (0, 1)
    )
    given = initialize(LanguageModel(there), seed=0).state_dict()
    monkeypatch.setattr("dla_train.training.initial_weights.exported_state", lambda path: given)
    name = "blocks.0.mixer.memory.slot_weight.weight"
    for config, wanted in ((there, given[name]), (here, torch.zeros_like(given[name]))):
        model = initialize(LanguageModel(config), seed=1)
        InitialWeights(Path("there"), there, None, None).fill(model)
        assert torch.equal(model.state_dict()[name], wanted)
