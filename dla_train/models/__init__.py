"""Language models in pure torch: their configuration, modules, initialization and generation.

The configuration is imported at once. Everything that needs torch is imported on first use, so that a recipe can be
read and shown without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dla_train.models.config import ModelConfig, model_config_from_dict
from dla_train.models.hybrid_config import HybridConfig
from dla_train.models.memory_config import (
    MEMORIES,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    MemoryConfig,
    SingleMemory,
)
from dla_train.models.mixer_config import MIXERS, AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig

if TYPE_CHECKING:
    from dla_train.models.cache import ModelCache
    from dla_train.models.generation import generate, stream
    from dla_train.models.initialization import initialize
    from dla_train.models.language_model import LanguageModel

_NEEDS_TORCH = {
    "LanguageModel": "language_model",
    "ModelCache": "cache",
    "generate": "generation",
    "initialize": "initialization",
    "stream": "generation",
}

__all__ = [
    "MEMORIES",
    "MIXERS",
    "AttentionConfig",
    "DynamicMemory",
    "FenwickMemory",
    "FixedMemory",
    "GatedDeltaNetConfig",
    "HybridConfig",
    "LanguageModel",
    "Mamba2Config",
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


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"dla_train.models.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
