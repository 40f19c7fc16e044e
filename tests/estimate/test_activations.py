"""The stated activations are what autograd is found to keep: every storage that is saved for the backward, once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dla_train.estimate.activations import Setting, saved_bytes
from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    GatedDeltaNetConfig,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
)

MIXERS = {
    "mamba2-single": Mamba2Config(heads=8, head_dim=32, state_dim=32, memory=SingleMemory()),
    "mamba2-dynamic": Mamba2Config(heads=8, head_dim=32, state_dim=32, memory=DynamicMemory(capacity=6)),
    "mamba2-fenwick": Mamba2Config(heads=4, head_dim=64, state_dim=16, groups=2, memory=FenwickMemory(capacity=8)),
    "gdn-single": GatedDeltaNetConfig(heads=2, key_dim=48, value_dim=96, memory=SingleMemory()),
    "gdn-dynamic": GatedDeltaNetConfig(heads=2, key_dim=48, value_dim=96, memory=DynamicMemory(capacity=6)),
    "gdn-hard": GatedDeltaNetConfig(heads=3, key_dim=32, value_dim=64, memory=DynamicMemory(capacity=9, gate="hard")),
    "attention": AttentionConfig(heads=4),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("batch", "window"), [(1, 512), (2, 320)])
@pytest.mark.parametrize("name", MIXERS)
def test_activations_are_within_10_percent_of_what_is_saved(found_bytes, name, batch, window, precision):
    config = ModelConfig(vocab_size=500, hidden=128, layers=3, mixer=MIXERS[name])
    found = found_bytes(config, batch, window, precision)
    parts = saved_bytes(config, Setting(batch=batch, window=window, precision=precision, path="torch", is_gpu=False))
    assert sum(parts.values()) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["mamba2-dynamic", "gdn-single", "attention"])
def test_a_block_that_is_computed_again_keeps_its_input(found_bytes, name, every):
    """After the forward; in the backward comes one such block at a time, which the statement has in it."""
    config = ModelConfig(vocab_size=500, hidden=128, layers=4, mixer=MIXERS[name])
    setting = Setting(batch=1, window=512, precision="32-true", path="torch", is_gpu=False)
    block = sum(saved_bytes(config, setting).values()) - sum(saved_bytes(replace(config, layers=3), setting).values())
    stated = sum(saved_bytes(config, replace(setting, recompute_every=every)).values())
    assert stated - block == pytest.approx(found_bytes(config, 1, 512, "32-true", every), rel=0.15)
    assert stated < 0.8 * sum(saved_bytes(config, setting).values())
