"""What a language model is made of, as frozen dataclasses. A recipe's `model` section sets these fields.

Every class checks itself when it is made: a value that cannot work never reaches a module. Messages name the field,
what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dla_train.models.config_checks import LARGEST_COUNT, check_count, check_positive
from dla_train.models.memory_config import MEMORIES
from dla_train.models.mixer_config import MIXERS, AttentionConfig, MixerConfig

MLP_MULTIPLE = 64
"""The SwiGLU width is rounded up to a multiple of this, so that its matrix products fill whole tiles."""

MOST_STD = 100
"""What is drawn from a wider distribution overflows in the first forward pass."""

MOST_LAYERS = 1_000
"""Far more than any real model has. With a hundred times as many, it would take minutes until any message appears."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole language model.

    Attributes:
        vocab_size: number of token ids. hidden: width of the residual stream. layers: number of blocks.
        mixer: what mixes tokens, the same in every block.
        mlp_ratio: size of the MLP, given as that of a plain MLP of this ratio: SwiGLU has three matrices instead of
            two, so its width is `2 / 3 * mlp_ratio * hidden`, rounded up to a multiple of 64 (ratio 4 at 1536: 4096).
        tie_embeddings: the output head is the embedding.
        norm_eps: epsilon of every RMSNorm. init_std: standard deviation of the matrices at the start.
    """

    vocab_size: int
    hidden: int
    layers: int
    mixer: MixerConfig
    mlp_ratio: float = 4.0
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden", "layers"):
            check_count(name, getattr(self, name))
        if self.layers > MOST_LAYERS:
            raise ValueError(f"layers is {self.layers}; it must be at most {MOST_LAYERS:,}")
        for name in ("mlp_ratio", "norm_eps", "init_std"):
            check_positive(name, getattr(self, name))
        for name, most in (("norm_eps", 1), ("init_std", MOST_STD)):
            if (value := getattr(self, name)) > most:
                raise ValueError(f"{name} is {value}; it must be at most {most}")
        if self.mlp_ratio * self.hidden > LARGEST_COUNT:
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, times hidden {self.hidden}; it must be at most {LARGEST_COUNT:,}"
            )
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings is {self.tie_embeddings!r}; it must be true or false")
        if not isinstance(self.mixer, tuple(MIXERS.values())):
            raise ValueError(f"mixer is {self.mixer!r}; it must be one of {', '.join(MIXERS)}")
        if isinstance(self.mixer, AttentionConfig) and self.hidden % (2 * self.mixer.heads):
            raise ValueError(
                f"hidden is {self.hidden} and mixer.heads is {self.mixer.heads}; hidden must be a multiple of "
                "twice the heads (rotary positions turn pairs of channels)"
            )

    @property
    def mlp_hidden(self) -> int:
        """Width of the SwiGLU MLP."""
        return math.ceil(round(self.hidden * self.mlp_ratio * 2 / 3, 6) / MLP_MULTIPLE) * MLP_MULTIPLE


def model_config_from_dict(fields: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict(config)`, for a configuration read from JSON.

    Raises:
        ValueError: an unknown kind or field, a missing field, or a value that the classes above refuse.
    """
    fields = dict(fields)
    mixer = dict(_table("mixer", fields.get("mixer")))
    if "memory" in mixer:
        mixer["memory"] = _of_kind("mixer.memory", _table("mixer.memory", mixer["memory"]), MEMORIES)
    fields["mixer"] = _of_kind("mixer", mixer, MIXERS)
    return _make("model", ModelConfig, fields)


def _of_kind(name: str, fields: Mapping[str, Any], classes: Mapping[str, type]) -> Any:
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(f"{name}.kind is {kind!r}; it must be one of {', '.join(classes)}")
    return _make(name, classes[kind], fields)


def _make(name: str, cls: type, fields: Mapping[str, Any]) -> Any:
    known = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := [key for key in fields if key not in known]:
        raise ValueError(f"{name} has no field {unknown[0]!r}; its fields are {', '.join(known)}")
    if missing := [key for key, field in known.items() if field.default is dataclasses.MISSING and key not in fields]:
        raise ValueError(f"{name} lacks the field {missing[0]!r}; give it a value")
    return cls(**fields)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be a table with a kind")
    return value
