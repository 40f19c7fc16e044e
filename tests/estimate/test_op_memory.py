"""The op's working memory is what its operators allocate; on the meta device, where kernels have nothing to do."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dla_train.estimate.activations import Setting
from dla_train.estimate.op_memory import op_memory
from dla_train.models import DynamicMemory, FenwickMemory, GatedDeltaNetConfig, Mamba2Config, ModelConfig, SingleMemory

pytest.importorskip("triton")


class Peak(TorchDispatchMode):
    """The most bytes of meta tensors that are alive at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.bytes = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                storage = x.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return made


@pytest.fixture(autouse=True)
def no_launches(monkeypatch):
    from triton.runtime.jit import JITFunction

    monkeypatch.setattr(JITFunction, "run", lambda *args, **kwargs: None)


def empty(*shape, dtype=torch.bfloat16, leaf=False):
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=leaf)


def stated(mixer, window):
    config = ModelConfig(vocab_size=300, hidden=64, layers=1, mixer=mixer)
    return op_memory(config, Setting(batch=1, window=window, precision="bf16-mixed", path="triton", is_gpu=True))


MEMORIES = {
    30: DynamicMemory(capacity=30),
    15: FenwickMemory(capacity=15),
    20: DynamicMemory(capacity=20, gate="hard"),
    1: SingleMemory(),
}


@pytest.mark.parametrize("slots", MEMORIES)
@pytest.mark.parametrize(("heads", "key_dim", "value_dim", "window"), [(48, 128, 64, 16_384), (24, 64, 128, 8_192)])
def test_memory_with_plain_decay(heads, key_dim, value_dim, window, slots):
    from dla_kernels.reader.fused.plain import read_plain_backward

    mixer = Mamba2Config(heads=heads, head_dim=value_dim, state_dim=key_dim, memory=MEMORIES[slots])
    q, v, weight = empty(1, window, 1, key_dim), empty(1, window, heads, value_dim), empty(1, window, heads, slots)
    shift, decay = empty(1, window, heads, dtype=torch.int32), empty(1, window, heads, dtype=torch.float32)
    with Peak() as peak:
        read_plain_backward._init_fn(v, None, q, q, v, weight, shift, decay, None, None, 1.0, False, slots == 30)
    assert stated(mixer, window) == pytest.approx(peak.bytes, rel=0.15)


@pytest.mark.parametrize("slots", MEMORIES)
@pytest.mark.parametrize(
    ("heads", "key_dim", "value_dim", "window"),
    [(6, 192, 384, 16_384), (6, 256, 512, 8_192), (6, 128, 128, 8_200), (6, 64, 128, 16_384)],
)
def test_memory_with_the_delta_rule(heads, key_dim, value_dim, window, slots):
    from dla_kernels.reader.fused.configs import tiles_by_rule
    from dla_kernels.reader.fused.delta import read_chunks_backward
    from dla_kernels.reader.fused.delta_chunks import chunk_algebra
    from dla_kernels.reader.fused.pieces import Pieces

    mixer = GatedDeltaNetConfig(heads=heads, key_dim=key_dim, value_dim=value_dim, memory=MEMORIES[slots])
    long = tiles_by_rule(key_dim, value_dim, slots, torch.bfloat16).long
    pieces = Pieces.of(1, window, None, 64, long, torch.device("meta"))
    inputs = empty(1, window, heads, key_dim, leaf=True), empty(1, window, heads, key_dim, leaf=True)
    scalars = empty(1, window, heads, leaf=True), empty(1, window, heads, leaf=True)
    with Peak() as algebra:
        made = chunk_algebra(*inputs, *scalars, torch.bfloat16, 1.0, heads, pieces)
        torch.autograd.grad(made[:4], (*inputs, *scalars), [torch.empty_like(x) for x in made[:4]])
    made = [x.detach() for x in made]
    v, weight = empty(1, window, heads, value_dim), empty(1, window, heads, slots)
    shift = empty(1, window, heads, dtype=torch.int32)
    with Peak() as reading:
        read_chunks_backward._init_fn(v, None, *made, v, weight, shift, None, None, False, slots == 30)
    assert stated(mixer, window) == pytest.approx(max(algebra.bytes, reading.bytes), rel=0.15)
