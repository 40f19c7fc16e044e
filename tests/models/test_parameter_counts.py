"""The paper's shapes, built on the meta device, have the paper's sizes (PAPER, section 2)."""

from __future__ import annotations

import pytest
import torch

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    GatedDeltaNetConfig,
    LanguageModel,
    Mamba2Config,
    MixerConfig,
    ModelConfig,
    SingleMemory,
)

MAMBA2 = Mamba2Config(heads=48, head_dim=64, state_dim=128, groups=1, memory=SingleMemory())
GDN = GatedDeltaNetConfig(heads=6, key_dim=192, value_dim=384, memory=SingleMemory())


def parameters(mixer: MixerConfig, layers: int = 21) -> int:
    with torch.device("meta"):
        model = LanguageModel(ModelConfig(vocab_size=32_000, hidden=1536, layers=layers, mixer=mixer, init_std=0.006))
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("mixer", "layers", "billions"),
    [
        (MAMBA2, 21, 0.80),
        (GDN, 21, 0.79),
        (AttentionConfig(heads=16), 21, 0.69),
        (AttentionConfig(heads=16), 24, 0.78),
    ],
    ids=["mamba2", "gated_deltanet", "transformer-21", "transformer-24"],
)
def test_the_papers_shapes_have_the_papers_sizes(mixer: MixerConfig, layers: int, billions: float) -> None:
    assert abs(parameters(mixer, layers) / 1e9 - billions) < 0.005


def test_slot_weights_are_all_that_a_memory_adds() -> None:
    dynamic = Mamba2Config(heads=48, head_dim=64, state_dim=128, groups=1, memory=DynamicMemory(capacity=30))
    assert parameters(dynamic) - parameters(MAMBA2) == 21 * 48 * 30 * (1536 + 1)
