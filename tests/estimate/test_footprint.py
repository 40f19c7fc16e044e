"""Parameters, gradients, optimizer state and checkpoints have exactly the bytes that the estimate says."""

from __future__ import annotations

import pytest
import torch

from dla_train.checkpoints.state_file import state_bytes
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.activations import Setting
from dla_train.estimate.footprint import footprint
from dla_train.estimate.parts import parameter_parts
from dla_train.models import LanguageModel, initialize
from dla_train.training.optimizers import build_optimizer

CASES = {
    "adamw": [],
    "muon": ["optimizer={kind: muon, lr: 1e-3}"],
    "bf16-true": ["training.precision=bf16-true"],
    "gated deltanet": ["model.mixer={kind: gated_deltanet, heads: 2, key_dim: 8, value_dim: 16, memory: fenwick}"],
    "attention": ["model.mixer={kind: attention, heads: 2}", "model.tie_embeddings=true"],
    "learned thresholds": ["model.mixer.memory.learn_threshold=true"],
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_a_real_step(micro_recipe, case):
    recipe = load(find(str(micro_recipe)), CASES[case]).recipe
    with torch.device("meta"):
        on_meta = LanguageModel(recipe.model)
    training = recipe.training
    setting = Setting(
        batch=training.micro_batch, window=recipe.data.window, precision=training.precision, path="torch", is_gpu=False
    )
    stated = footprint(recipe, on_meta, 1, setting)

    model = initialize(LanguageModel(recipe.model), seed=0)
    if training.precision == "bf16-true":
        model.to(torch.bfloat16)
    optimizer = build_optimizer(recipe.optimizer, model)
    tokens = torch.randint(0, 300, (2, 25))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert stated.parameters == parameters + sum(buffer.nbytes for buffer in model.buffers())
    assert stated.gradients == sum(parameter.grad.nbytes for parameter in model.parameters())
    assert stated.parameters + stated.optimizer == state_bytes(model, [optimizer]) == stated.checkpoint
    assert stated.total == sum(stated.on_device.values())


def test_a_checkpoint_on_disk_has_the_stated_size(cli, micro_recipe, tmp_path):
    settings = ["training.steps=4", "model.hidden=160"]
    assert cli("fit", "--recipe", micro_recipe, *settings).code == 0
    recipe = load(find(str(micro_recipe)), settings).recipe
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    setting = Setting(batch=2, window=24, precision="32-true", path="torch", is_gpu=False)
    stated = footprint(recipe, model, 1, setting).checkpoint
    [folder] = (tmp_path / "runs" / "micro" / "checkpoints").glob("step-*")
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert stated < on_disk < stated + 60_000, "names, shapes and the recipe come on top"


@pytest.mark.parametrize("name", ["tiny", "mamba2-dla-780m", "gdn-790m", "transformer-130m"])
def test_parts_make_up_the_model(name):
    with torch.device("meta"):
        model = LanguageModel(load(find(name)).recipe.model)
    parts = parameter_parts(model)
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert parts["mlp"] == sum(value.numel() for key, value in model.named_parameters() if ".mlp." in key)
    assert ("slot weights" in parts) == ("dla" in name or name == "tiny")
    assert ("head" in parts) == (not model.config.tie_embeddings)
    assert "others" not in parts
