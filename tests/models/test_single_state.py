"""lambda = 1 in every slot gives the single-state backbone, whatever the plan (PAPER, consequence 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_train.models import DynamicMemory, FenwickMemory, FixedMemory
from dla_train.models.slot_weight import SlotWeight

MULTI_STATE = [
    DynamicMemory(capacity=4, threshold=1.2),
    DynamicMemory(capacity=1, threshold=0.6),
    DynamicMemory(capacity=7, threshold=0.0),
    DynamicMemory(capacity=3, threshold=2.0),
    FixedMemory(block=5, capacity=3),
    FenwickMemory(capacity=4),
]


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
@pytest.mark.parametrize("memory", MULTI_STATE, ids=lambda memory: f"{memory.kind}-{memory.capacity}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_unit_weights_give_the_backbone(
    make_model: Any, tokens: Any, kind: str, memory: Any, dtype: torch.dtype, tolerance: float
) -> None:
    single = make_model(kind, "single", dtype=dtype, seed=3)
    many = make_model(kind, memory, dtype=dtype, seed=4)
    loaded = many.load_state_dict(single.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all(".memory." in key for key in loaded.missing_keys)
    for module in many.modules():
        if isinstance(module, SlotWeight):
            torch.nn.init.zeros_(module.weight)
    x = tokens(2, 70)
    expected = single(x)[0]
    torch.testing.assert_close(many(x)[0], expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_other_weights_do_not(make_model: Any, tokens: Any, kind: str) -> None:
    single, many = make_model(kind, "single"), make_model(kind, "dynamic")
    many.load_state_dict(single.state_dict(), strict=False)
    x = tokens(2, 70)
    assert (many(x)[0] - single(x)[0]).abs().max() > 1e-3
