"""Small models of several kinds, which several test files evaluate."""

from __future__ import annotations

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    initialize,
)

MIXERS = {
    "mamba2": Mamba2Config(heads=2, head_dim=8, state_dim=6, memory=DynamicMemory(capacity=4, threshold=1.2)),
    "gdn": GatedDeltaNetConfig(heads=2, key_dim=6, value_dim=8, memory=DynamicMemory(capacity=4, threshold=1.2)),
    "fixed": Mamba2Config(heads=2, head_dim=8, state_dim=6, memory=FixedMemory(capacity=4, block=3)),
    "fenwick": GatedDeltaNetConfig(heads=2, key_dim=6, value_dim=8, memory=FenwickMemory(capacity=6)),
    "attention": AttentionConfig(heads=2),
    "hybrid": Mamba2Config(heads=2, head_dim=8, state_dim=6, memory=DynamicMemory(capacity=4, threshold=1.2)),
}
SLIDING = HybridConfig(every=2, mixer=AttentionConfig(heads=2, window=5))


def model_of(name: str) -> LanguageModel:
    """The model with the mixer of this name, in float64."""
    config = ModelConfig(
        vocab_size=20,
        hidden=16,
        layers=2,
        init_std=0.3,
        mixer=MIXERS[name],
        hybrid=SLIDING if name == "hybrid" else None,
    )
    return initialize(LanguageModel(config), seed=0).double().eval()
