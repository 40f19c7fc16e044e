"""What the Triton path keeps, interpreted: little more than the inputs of its operators."""

from __future__ import annotations

import functools

import pytest

import dla_kernels
from dla_train.estimate.activations import Setting, saved_bytes
from dla_train.models import DynamicMemory, GatedDeltaNetConfig, Mamba2Config, ModelConfig

pytestmark = pytest.mark.interpret

MIXERS = {
    "mamba2-dynamic": Mamba2Config(heads=2, head_dim=16, state_dim=16, memory=DynamicMemory(capacity=3, threshold=1.4)),
    "gdn-dynamic": GatedDeltaNetConfig(heads=2, key_dim=16, value_dim=32, memory=DynamicMemory(capacity=3)),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])  # bfloat16 is wrong here, but not its sizes
@pytest.mark.parametrize("name", MIXERS)
def test_activations_of_the_kernels_are_within_10_percent_of_what_is_kept(found_bytes, name, precision, monkeypatch):
    read = functools.partial(dla_kernels.multi_state_attention, backend="triton")
    monkeypatch.setattr("dla_train.models.memory.multi_state_attention", read)
    monkeypatch.setattr("dla_train.models.memory.segment", functools.partial(dla_kernels.segment, backend="triton"))
    for module in ("convolution", "gated_norm", "gated_activation", "l2_norm", "softplus"):
        monkeypatch.setattr(f"dla_kernels.layers.{module}.torch_or_triton", lambda *_: "triton")
    config = ModelConfig(vocab_size=200, hidden=48, layers=1, mixer=MIXERS[name])
    found, _ = found_bytes(config, 1, 64, precision)
    # Here other norms are not fused: no GPU.
    setting = Setting(batch=1, window=64, precision=precision, path="triton", is_gpu=False)
    assert sum(saved_bytes(config, setting).values()) == pytest.approx(found, rel=0.1)
