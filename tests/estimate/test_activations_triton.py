"""What the Triton path keeps, interpreted: little more than the inputs of its operators."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import dla_kernels
from dla_train.estimate.activations import Setting, kept_after_forward, saved_bytes
from dla_train.models import DynamicMemory, GatedDeltaNetConfig, LanguageModel, Mamba2Config, ModelConfig, initialize
from tests.operator_calls import Calls

pytestmark = pytest.mark.interpret

MIXERS = {
    "mamba2-dynamic": Mamba2Config(heads=2, head_dim=16, state_dim=16, memory=DynamicMemory(capacity=3, threshold=1.4)),
    "gdn-dynamic": GatedDeltaNetConfig(heads=2, key_dim=16, value_dim=32, memory=DynamicMemory(capacity=3)),
}


@pytest.fixture
def kernels(monkeypatch):
    """Lets models take kernels wherever there are any."""
    read = functools.partial(dla_kernels.multi_state_attention, backend="triton")
    monkeypatch.setattr("dla_train.models.memory.multi_state_attention", read)
    monkeypatch.setattr("dla_train.models.memory.segment", functools.partial(dla_kernels.segment, backend="triton"))
    for module in ("convolution", "gated_norm", "gated_activation", "l2_norm", "scaled_heads", "softplus"):
        monkeypatch.setattr(f"dla_kernels.layers.{module}.torch_or_triton", lambda *_: "triton")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])  # bfloat16 is wrong here, but not its sizes
@pytest.mark.parametrize("name", MIXERS)
def test_activations_of_the_kernels_are_within_10_percent_of_what_is_kept(found_bytes, name, precision):
    config = ModelConfig(vocab_size=200, hidden=48, layers=1, mixer=MIXERS[name])
    # Here other norms are not fused: no GPU.
    setting = Setting(batch=1, window=64, precision=precision, path="triton", is_gpu=False)
    found, _ = found_bytes(config, 1, 64, precision)
    assert sum(saved_bytes(config, setting).values()) == pytest.approx(found, rel=0.1)
    found, _ = found_bytes(config, 1, 64, precision, 1, True)
    selective = kept_after_forward(config, replace(setting, recompute_every=1, selective=True))
    assert sum(selective.values()) == pytest.approx(found, rel=0.1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", MIXERS)
def test_the_op_that_is_kept_does_not_run_again(name):
    model = initialize(LanguageModel(ModelConfig(vocab_size=200, hidden=48, layers=2, mixer=MIXERS[name])), seed=0)
    model.recompute_blocks(selective=True)
    tokens = torch.randint(0, 200, (1, 65), generator=torch.Generator().manual_seed(0))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    with Calls() as calls:
        loss.backward()
    assert calls.number["dla::short_convolution"] == 2
    assert not {"dla::segment", "dla::read_plain", "dla::read_delta"} & set(calls.number)
