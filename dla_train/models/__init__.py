"""Language models in pure torch: their configuration, modules, initialisation and generation."""

from dla_train.models.cache import ModelCache
from dla_train.models.config import (
    MEMORIES,
    MIXERS,
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    Mamba2Config,
    MemoryConfig,
    MixerConfig,
    ModelConfig,
    SingleMemory,
    model_config_from_dict,
)
from dla_train.models.generation import generate, stream
from dla_train.models.initialization import initialize
from dla_train.models.language_model import LanguageModel
from dla_train.models.memory import Memory

__all__ = [
    "MEMORIES",
    "MIXERS",
    "AttentionConfig",
    "DynamicMemory",
    "FenwickMemory",
    "FixedMemory",
    "GatedDeltaNetConfig",
    "LanguageModel",
    "Mamba2Config",
    "Memory",
    "MemoryConfig",
    "MixerConfig",
    "ModelCache",
    "ModelConfig",
    "SingleMemory",
    "generate",
    "initialize",
    "model_config_from_dict",
    "stream",
]
