"""Small models of every kind, and what several test files ask of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    MemoryConfig,
    MixerConfig,
    ModelConfig,
    SingleMemory,
    initialize,
)

VOCAB = 61

# Small capacities, so that 40 tokens bring boundaries, full slots and merges (test_memory.py asserts that they do).
MEMORIES: dict[str, MemoryConfig] = {
    "single": SingleMemory(),
    "fixed": FixedMemory(block=5, capacity=3),
    "fenwick": FenwickMemory(capacity=4),
    "dynamic": DynamicMemory(capacity=4, threshold=1.2),
}


ATTENTION = {
    "attention": AttentionConfig(heads=4),
    "sliding": AttentionConfig(heads=4, kv_heads=2, window=6),
    "unordered": AttentionConfig(heads=4, kv_heads=1, rope_base=None),
}
HYBRIDS = {
    "hybrid": HybridConfig(every=2, mixer=AttentionConfig(heads=2, kv_heads=1, window=9)),
    "hybrid-first": HybridConfig(layers=(0,), mixer=AttentionConfig(heads=4, rope_base=None)),
}


def mixer(kind: str, memory: MemoryConfig) -> MixerConfig:
    if kind == "mamba2":
        return Mamba2Config(heads=4, head_dim=8, state_dim=6, groups=2, conv_width=4, memory=memory)
    if kind == "gated_deltanet":
        return GatedDeltaNetConfig(heads=2, key_dim=6, value_dim=10, conv_width=4, memory=memory)
    return ATTENTION[kind]


LINEAR_CASES = [(kind, memory) for kind in ("mamba2", "gated_deltanet") for memory in MEMORIES]
HYBRID_CASES = [("mamba2+hybrid", "dynamic"), ("gated_deltanet+hybrid-first", "fenwick")]
ALL_CASES = [*LINEAR_CASES, *((kind, "single") for kind in ATTENTION), *HYBRID_CASES]

ModelFactory = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def make_model() -> ModelFactory:
    """`make_model(kind, memory, dtype=..., seed=..., **fields of ModelConfig)`; kind: of the mixer, for a hybrid with
    "+" and one of HYBRIDS; memory: a name or a configuration."""

    def make(
        kind: str,
        memory: str | MemoryConfig = "single",
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        **fields: Any,
    ) -> LanguageModel:
        memory = MEMORIES[memory] if isinstance(memory, str) else memory
        shape: dict[str, Any] = {"vocab_size": VOCAB, "hidden": 16, "layers": 2, "init_std": 0.2} | fields
        kind, _, hybrid = kind.partition("+")
        config = ModelConfig(mixer=mixer(kind, memory), hybrid=HYBRIDS[hybrid] if hybrid else None, **shape)
        model = LanguageModel(config)
        return initialize(model, seed=seed).to(dtype)

    return make


@pytest.fixture(params=LINEAR_CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def linear_case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every linear mixer with every memory."""
    return request.param


@pytest.fixture(params=ALL_CASES, ids=lambda case: case[0] if case[0] in ATTENTION else f"{case[0]}-{case[1]}")
def any_case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every mixer with every memory it can have."""
    return request.param


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """`tokens(B, T, seed=...)`: random ids."""

    def make(batch: int, time: int, *, seed: int = 0) -> Tensor:
        return torch.randint(0, VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))

    return make
