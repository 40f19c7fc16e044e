"""The stated bytes are those that models give to be exchanged; tests/distributed counts those of whole runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.activations import Setting
from dla_train.estimate.exchange import sent_bytes
from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
    context,
    initialize,
)
from dla_train.models.context import Context

DYNAMIC = DynamicMemory(capacity=3)
MIXERS = {
    "mamba2": Mamba2Config(heads=4, head_dim=8, state_dim=6, memory=DYNAMIC),
    "mamba2-groups": Mamba2Config(heads=4, head_dim=8, state_dim=6, groups=2, memory=DYNAMIC),
    "mamba2-uneven": Mamba2Config(heads=7, head_dim=8, state_dim=6, memory=DYNAMIC),
    "mamba2-single": Mamba2Config(heads=4, head_dim=8, state_dim=6, memory=SingleMemory()),
    "gdn": GatedDeltaNetConfig(heads=4, key_dim=6, value_dim=10, memory=DYNAMIC),
    "gdn-uneven": GatedDeltaNetConfig(heads=3, key_dim=6, value_dim=10, memory=DYNAMIC),
    "attention": AttentionConfig(heads=4),
    "attention-few": AttentionConfig(heads=2),
    "attention-keys": AttentionConfig(heads=4, kv_heads=2, window=9),
}
WAYS = {(None, False): "none", (1, False): "full", (2, False): "every 2", (1, True): "selective"}
"""Of keeping less for the backward: as arguments of `recompute_blocks`, and as in a recipe."""


@pytest.fixture
def counted(monkeypatch):
    """Bytes of every tensor that is given to be exchanged among several ranks, which all send as this one does."""
    sizes = []

    def exchange(x, group):
        sizes.append(x.nbytes)
        return x.contiguous().clone()

    monkeypatch.setattr(context, "_all_to_all", exchange)
    return sizes


def train_on(config, size, precision="32-true", every=None, selective=False):
    """Forward and backward of a row of 24 tokens, as one of `size` ranks."""
    model = initialize(LanguageModel(config), seed=0)
    if every is not None:
        model.recompute_blocks(every, selective=selective)
    model.share_windows(Context(size, 0, "a group that is not there"))
    tokens = torch.arange(25).remainder(300).view(1, -1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()


@pytest.mark.parametrize(
    ("name", "size", "precision", "every", "selective"),
    [
        *((name, size, "32-true", None, False) for name in MIXERS for size in (2, 4)),
        *(("hybrid", 2, precision, *way) for precision in ("32-true", "bf16-mixed") for way in WAYS),
    ],
)
def test_stated_bytes_are_those_exchanged(counted, micro_recipe, name, size, precision, every, selective):
    hybrid = HybridConfig(every=2, mixer=MIXERS["attention-keys"]) if name == "hybrid" else None
    mixer = MIXERS["mamba2" if name == "hybrid" else name]
    config = ModelConfig(vocab_size=300, hidden=16, layers=3, mixer=mixer, hybrid=hybrid)
    train_on(config, size, precision, every, selective)
    recipe = load(find(str(micro_recipe))).recipe
    way = WAYS[every, selective]
    training = replace(recipe.training, global_batch=6, micro_batch=1, activation_checkpointing=way)
    setting = Setting(batch=1, window=24, precision=precision, path="torch", is_gpu=False, shared=size)
    stated = sent_bytes(replace(recipe, model=config, training=training), 3 * size, setting)
    assert stated == 2 * sum(counted) * (size - 1) / size, "two micro-batches; a rank keeps its own part"


@pytest.mark.parametrize(("name", "number"), [("mamba2", 3), ("gdn", 3), ("mamba2-single", 2), ("attention", 2)])
def test_exchanges_of_a_layer(counted, name, number):
    """There and back, and one for slot weights (`dla_train.models.slot_weight` says why); as many in the backward."""
    train_on(ModelConfig(vocab_size=300, hidden=16, layers=2, mixer=MIXERS[name]), 2)
    assert len(counted) == 2 * 2 * number


def test_the_estimate_says_it(cli, micro_recipe):
    estimate = ("estimate", "--recipe", micro_recipe, "--devices", "2")
    assert "sent to share windows" not in cli(*estimate, "strategy=ddp").out
    shared = cli(*estimate, "strategy={kind: ddp, context_parallel: 2}").out
    assert "| sent to share windows  | 0.03 MB by each device, a step " in shared
    assert "and a mixer has" not in shared
    uneven = cli(*estimate, "strategy={kind: ddp, context_parallel: 2}", "model.mixer.heads=3").out
    assert "a mixer has 3 heads: each process takes the time of 2, as if there were 4." in uneven


def test_groups_that_devices_cannot_form_are_refused(cli, micro_recipe):
    done = cli("estimate", "--recipe", micro_recipe, "--devices", "6", "strategy={kind: ddp, context_parallel: 4}")
    assert done.code == 2
    said = "it is 4, but 6 devices cannot form groups of 4 that share windows. It may be 1, 2, 3, 6, or take a multiple"
    assert f"on the command line: strategy.context_parallel: {said}" in done.err


def test_the_figure_of_the_documentation(cli):
    example = ("data.window=262144", "training.micro_batch=1", "training.global_batch=8")
    strategy = "strategy={kind: fsdp, context_parallel: 8}"
    said = cli("estimate", "--recipe", "mamba2-dla-780m", "--devices", "32", strategy, *example).out
    (sent,) = re.findall(r"sent to share windows +\| (.* GB) by each device, a step", said)
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    assert f"estimate` says how much each device sends: {sent} a step for the job above" in " ".join(page.split())
