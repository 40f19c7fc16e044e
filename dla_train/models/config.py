"""What a language model is made of, as frozen dataclasses. A recipe's `model` section sets these fields.

Every class checks itself when it is made: a value that cannot work never reaches a module. Messages name the field,
what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dla_train.models.config_checks import LARGEST_COUNT, check_count, check_positive
from dla_train.models.hybrid_config import HybridConfig, check_hybrid
from dla_train.models.memory_config import MEMORIES, DynamicMemory, MemoryConfig
from dla_train.models.mixer_config import MIXERS, AttentionConfig, MixerConfig, check_mixer, memory_of

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
        mixer: what mixes tokens, the same in every block but those of `hybrid`.
        hybrid: blocks with another mixer; null if there are none.
        mlp_ratio: size of the MLP, given as that of a plain MLP of this ratio: SwiGLU has three matrices instead of
            two, so its width is `2 / 3 * mlp_ratio * hidden`, rounded up to a multiple of 64 (ratio 4 at 1536: 4096).
            null for blocks without an MLP, as in Mamba-2's own models.
        tie_embeddings: the output head is the embedding.
        norm_eps: epsilon of every RMSNorm. init_std: standard deviation of the matrices at the start.
    """

    vocab_size: int
    hidden: int
    layers: int
    mixer: MixerConfig
    hybrid: HybridConfig | None = None
    mlp_ratio: float | None = 4.0
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden", "layers"):
            check_count(name, getattr(self, name))
        if self.layers > MOST_LAYERS:
            raise ValueError(f"layers is {self.layers}; it must be at most {MOST_LAYERS:,}")
        for name in ("norm_eps", "init_std"):
            check_positive(name, getattr(self, name))
        for name, most in (("norm_eps", 1), ("init_std", MOST_STD)):
            if (value := getattr(self, name)) > most:
                raise ValueError(f"{name} is {value}; it must be at most {most}")
        if self.mlp_ratio is not None:
            check_positive("mlp_ratio", self.mlp_ratio)
            if self.mlp_ratio * self.hidden > LARGEST_COUNT:
                raise ValueError(
                    f"mlp_ratio is {self.mlp_ratio}, times hidden {self.hidden}; it must be at most {LARGEST_COUNT:,}"
                )
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings is {self.tie_embeddings!r}; it must be true or false")
        check_mixer("mixer", self.mixer)
        if self.hybrid is not None:
            check_hybrid(self.hybrid, self.mixer, self.layers)
        for name, mixer in self._named_mixers():
            if not isinstance(mixer, AttentionConfig):
                continue
            pairs = mixer.rope_base is not None
            if self.hidden % (mixer.heads * (2 if pairs else 1)):
                number = "twice the heads (rotary positions turn pairs of channels)" if pairs else "the heads"
                raise ValueError(
                    f"hidden is {self.hidden} and {name}.heads is {mixer.heads}; hidden must be a multiple of {number}"
                )

    def _named_mixers(self) -> list[tuple[str, MixerConfig]]:
        """Both mixers, or the only one, by their keys."""
        return [("mixer", self.mixer), *([] if self.hybrid is None else [("hybrid.mixer", self.hybrid.mixer)])]

    @functools.cached_property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """The mixer of every block."""
        hybrid = self.hybrid
        return tuple(
            self.mixer if hybrid is None or not hybrid.has(layer) else hybrid.mixer for layer in range(self.layers)
        )

    @property
    def memories(self) -> tuple[MemoryConfig, ...]:
        """The memories of the linear mixers, those of `mixer` first; each once, however many blocks have it."""
        found = (memory_of(mixer) for _, mixer in self._named_mixers())
        return tuple(memory for memory in found if memory is not None)

    @property
    def dynamic(self) -> DynamicMemory | None:
        """A dynamic memory of this model. If both mixers have one, their thresholds are set by the same rules."""
        return next((memory for memory in self.memories if isinstance(memory, DynamicMemory)), None)

    @property
    def has_attention(self) -> bool:
        """Whether any block has softmax attention."""
        return any(isinstance(mixer, AttentionConfig) for _, mixer in self._named_mixers())

    def reads_any_length(self, trained: int) -> bool:
        """Whether texts longer than the windows of `trained` tokens, on which it was trained, bring nothing that it has
        never seen: rotary softmax attention must not read further back than that."""
        return all(
            not isinstance(mixer, AttentionConfig)
            or mixer.rope_base is None
            or (mixer.window is not None and mixer.window <= trained)
            for _, mixer in self._named_mixers()
        )

    @property
    def mlp_hidden(self) -> int:
        """Width of the SwiGLU MLP; 0 if there is none."""
        if self.mlp_ratio is None:
            return 0
        return math.ceil(round(self.hidden * self.mlp_ratio * 2 / 3, 6) / MLP_MULTIPLE) * MLP_MULTIPLE


def model_config_from_dict(fields: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict(config)`, for a configuration read from JSON.

    Raises:
        ValueError: an unknown kind or field, a missing field, or a value that the classes above refuse.
    """
    fields = dict(fields)
    fields["mixer"] = _mixer_from("mixer", fields.get("mixer"))
    if fields.get("hybrid") is not None:
        hybrid = dict(_table("hybrid", fields["hybrid"]))
        hybrid["mixer"] = _mixer_from("hybrid.mixer", hybrid.get("mixer"))
        if isinstance(hybrid.get("layers"), list):
            hybrid["layers"] = tuple(hybrid["layers"])
        fields["hybrid"] = _make("hybrid", HybridConfig, hybrid)
    return _make("model", ModelConfig, fields)


def _mixer_from(name: str, value: Any) -> MixerConfig:
    fields = dict(_table(name, value))
    if "memory" in fields:
        fields["memory"] = _of_kind(f"{name}.memory", _table(f"{name}.memory", fields["memory"]), MEMORIES)
    return _of_kind(name, fields, MIXERS)


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
