"""What a block hands to its mixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dla_train.models import (
    DynamicMemory,
    GatedDeltaNetConfig,
    LanguageModel,
    Mamba2Config,
    MemoryConfig,
    MixerConfig,
    ModelConfig,
    SingleMemory,
    initialize,
)
from dla_train.models.block import Block


@pytest.mark.parametrize(
    ("kind", "memory"), [("mamba2", DynamicMemory(capacity=3)), ("gated_deltanet", SingleMemory())]
)
def test_autocast_keeps_one_copy_of_a_mixers_input(kind: str, memory: MemoryConfig) -> None:
    """Its products all read that one: each would keep a copy of its own for the backward."""
    mixers: dict[str, MixerConfig] = {
        "mamba2": Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=memory),
        "gated_deltanet": GatedDeltaNetConfig(heads=2, key_dim=8, value_dim=8, memory=memory),
    }
    config = ModelConfig(vocab_size=8, hidden=40, layers=1, mixer=mixers[kind])
    model = initialize(LanguageModel(config), seed=0)
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x
        return x

    x = torch.randn(1, 6, 40)
    block = model.blocks[0]
    assert isinstance(block, Block)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        block(x)
    normed = block.mixer_norm(x).bfloat16()
    copies = [one for one in kept.values() if one.dtype == torch.bfloat16 and one.numel() == x.numel()]
    assert len([one for one in copies if torch.equal(one.reshape(normed.shape), normed)]) == 1
