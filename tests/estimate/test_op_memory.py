"""The op's working memory is what its operators allocate; on the meta device, where kernels have nothing to do."""

from __future__ import annotations

import pytest
import torch

from dla_train.estimate.activations import Setting
from dla_train.estimate.op_memory import op_memory
from dla_train.models import DynamicMemory, FenwickMemory, GatedDeltaNetConfig, Mamba2Config, ModelConfig, SingleMemory
from tests.kernels.peak_memory import PeakMemory, meta, no_launches

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def nothing_runs():
    with no_launches():
        yield


def stated(mixer, window, shared=1):
    config = ModelConfig(vocab_size=300, hidden=64, layers=1, mixer=mixer)
    setting = Setting(batch=1, window=window, precision="bf16-mixed", path="triton", is_gpu=True, shared=shared)
    return op_memory(config, setting)


MEMORIES = {
    30: DynamicMemory(capacity=30),
    15: FenwickMemory(capacity=15),
    20: DynamicMemory(capacity=20, gate="hard"),
    1: SingleMemory(),
}


@pytest.mark.parametrize("slots", MEMORIES)
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize(("heads", "key_dim", "value_dim", "window"), [(48, 128, 64, 16_384), (24, 64, 128, 8_192)])
def test_memory_with_plain_decay(heads, key_dim, value_dim, window, shared, slots):
    from dla_kernels.reader.fused.plain import read_plain_backward

    mixer = Mamba2Config(heads=heads, head_dim=value_dim, state_dim=key_dim, memory=MEMORIES[slots])
    heads //= shared  # of a device, which reads the whole window
    q, v, weight = meta(1, window, 1, key_dim), meta(1, window, heads, value_dim), meta(1, window, heads, slots)
    shift, decay = meta(1, window, heads, dtype=torch.int32), meta(1, window, heads, dtype=torch.float32)
    with PeakMemory() as peak:
        read_plain_backward.run(v, None, q, q, v, weight, shift, decay, None, None, 1.0, False, slots == 30)
    assert stated(mixer, window, shared) == pytest.approx(peak.bytes, rel=0.15)


@pytest.mark.parametrize("slots", MEMORIES)
@pytest.mark.parametrize(
    ("heads", "key_dim", "value_dim", "window"),
    [(6, 192, 384, 16_384), (6, 256, 512, 8_192), (6, 128, 128, 8_200), (6, 64, 128, 16_384)],
)
def test_memory_with_the_delta_rule(heads, key_dim, value_dim, window, slots):
    from dla_kernels.reader.fused.delta import read_delta_backward

    mixer = GatedDeltaNetConfig(heads=heads, key_dim=key_dim, value_dim=value_dim, memory=MEMORIES[slots])
    k, v, weight = meta(1, window, heads, key_dim), meta(1, window, heads, value_dim), meta(1, window, heads, slots)
    shift, scalar = meta(1, window, heads, dtype=torch.int32), meta(1, window, heads)
    with PeakMemory() as peak:
        read_delta_backward.run(v, None, k, k, v, weight, shift, scalar, scalar, None, None, 1.0, False, slots == 30)
    assert stated(mixer, window) == pytest.approx(peak.bytes, rel=0.15)
