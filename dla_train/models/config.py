"""What a language model is made of, as frozen dataclasses. A recipe's `model` section sets these fields.

Every class checks itself when it is made: a value that cannot work never reaches a module. Messages name the field,
what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

GateKind = Literal["hard", "straight_through"]
MLP_MULTIPLE = 64
"""The SwiGLU width is rounded up to a multiple of this, so that its matrix products fill whole tiles."""

LARGEST_COUNT = 2**24
"""No size may be larger: the product of two of them is then at most 2^48, far from the limit of 64 bits."""


@dataclass(frozen=True, kw_only=True)
class SingleMemory:
    """One state for the whole past: the plain backbone."""

    kind: Literal["single"] = "single"

    def __post_init__(self) -> None:
        _check_kind(self)


@dataclass(frozen=True, kw_only=True)
class FixedMemory:
    """A new slot every `block` tokens; the two oldest merge when `capacity` is reached."""

    kind: Literal["fixed"] = "fixed"
    block: int = 512
    capacity: int = 32

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_count("block", self.block)
        _check_count("capacity", self.capacity)


@dataclass(frozen=True, kw_only=True)
class FenwickMemory:
    """The levels of Log-Linear attention (arXiv 2506.04761); 15 levels hold 16,384 tokens."""

    kind: Literal["fenwick"] = "fenwick"
    capacity: int = 15

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_count("capacity", self.capacity)


@dataclass(frozen=True, kw_only=True)
class DynamicMemory:
    """Dynamic Linear Attention: slots that begin where the content changes (eqs. 13 to 17).

    Attributes:
        capacity: the largest number of slots, the paper's K.
        threshold: tau of eq. 14, in [0, 2]; its initial value if it is learned.
        gate: "straight_through" gives the boundaries a gradient ("soft gating"); "hard" gives them none. The outputs
            are the same.
        gate_width: width of the sigmoid whose derivative the straight-through gate uses.
        learn_threshold: tau becomes a parameter per head; needs `gate="straight_through"`.
        calibrate_rate: in training, the share of tokens that should open a slot. Each of the first `calibrate_steps`
            steps sets tau of every head anew to give this rate, in place of `threshold`. null leaves `threshold` as it
            is, as in the paper; an untrained model then opens a slot at every token (`calibration`).
        calibrate_steps: how many steps calibrate. The features change most during the warm-up of the learning rate.
        steer: keeps that rate in all later steps: each step moves tau this fraction, in (0, 1], of the way to the value
            at which its own scores have the rate. null leaves tau as calibrated, and the rate drifts as the features
            change.
    """

    kind: Literal["dynamic"] = "dynamic"
    capacity: int = 30
    threshold: float = 0.6
    gate: GateKind = "straight_through"
    gate_width: float = 0.1
    learn_threshold: bool = False
    calibrate_rate: float | None = None
    calibrate_steps: int = 1
    steer: float | None = None

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_count("capacity", self.capacity)
        if not _is_number(self.threshold) or not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold is {self.threshold!r}; it must lie in [0, 2], the range of the score")
        _check_choice("gate", self.gate, get_args(GateKind))
        _check_positive("gate_width", self.gate_width)
        if not isinstance(self.learn_threshold, bool):
            raise ValueError(f"learn_threshold is {self.learn_threshold!r}; it must be true or false")
        if self.learn_threshold and self.gate == "hard":
            raise ValueError(
                "learn_threshold is true with gate 'hard', which gives the threshold no gradient; "
                "use gate 'straight_through' or learn_threshold false"
            )
        rate = self.calibrate_rate
        if rate is not None and (not _is_number(rate) or not 0 < rate < 1):
            raise ValueError(f"calibrate_rate is {rate!r}; it must lie between 0 and 1 (0.1 is common), or be null")
        _check_count("calibrate_steps", self.calibrate_steps)
        if self.steer is None:
            return
        if not _is_number(self.steer) or not 0 < self.steer <= 1:
            raise ValueError(f"steer is {self.steer!r}; it must be above 0 and at most 1 (0.1 is common), or null")
        if rate is None:
            raise ValueError(
                f"steer is {self.steer}, but calibrate_rate is null: give the rate that is to be kept, such as 0.1"
            )
        if self.learn_threshold:
            raise ValueError(
                f"steer is {self.steer} and learn_threshold true, and both would move the threshold; set steer null or "
                "learn_threshold false"
            )


MemoryConfig = SingleMemory | FixedMemory | FenwickMemory | DynamicMemory
MEMORIES: dict[str, type[MemoryConfig]] = {
    "single": SingleMemory,
    "fixed": FixedMemory,
    "fenwick": FenwickMemory,
    "dynamic": DynamicMemory,
}


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """The Mamba-2 mixer (arXiv 2405.21060). Its inner width is `heads * head_dim`.

    Attributes:
        heads: number of heads H. head_dim: width of a head (of a value, V).
        state_dim: width of B and C (keys and queries, K).
        groups: how many pairs of B and C there are; heads is a multiple of it.
        conv_width: taps of the short convolution.
        memory: how the past is kept.
    """

    kind: Literal["mamba2"] = "mamba2"
    heads: int
    head_dim: int = 64
    state_dim: int = 128
    groups: int = 1
    conv_width: int = 4
    memory: MemoryConfig

    def __post_init__(self) -> None:
        _check_kind(self)
        for name in ("heads", "head_dim", "state_dim", "groups", "conv_width"):
            _check_count(name, getattr(self, name))
        if self.heads % self.groups:
            raise ValueError(f"heads is {self.heads} and groups is {self.groups}; heads must be a multiple of groups")
        _check_product("heads", self.heads, "head_dim", self.head_dim)
        _check_product("groups", self.groups, "state_dim", self.state_dim)
        _check_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """The Gated DeltaNet mixer (arXiv 2412.06464).

    Attributes:
        heads: number of heads H. key_dim, value_dim: widths of one head's keys (K) and values (V).
        conv_width: taps of the short convolutions.
        memory: how the past is kept.
    """

    kind: Literal["gated_deltanet"] = "gated_deltanet"
    heads: int
    key_dim: int
    value_dim: int
    conv_width: int = 4
    memory: MemoryConfig

    def __post_init__(self) -> None:
        _check_kind(self)
        for name in ("heads", "key_dim", "value_dim", "conv_width"):
            _check_count(name, getattr(self, name))
        _check_product("heads", self.heads, "key_dim", self.key_dim)
        _check_product("heads", self.heads, "value_dim", self.value_dim)
        _check_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal softmax attention with rotary positions: the baseline with a growing cache.

    Attributes:
        heads: number of heads; divides the model's `hidden` into an even head width.
        rope_base: base of the rotary frequencies.
    """

    kind: Literal["attention"] = "attention"
    heads: int
    rope_base: float = 500_000.0

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_count("heads", self.heads)
        if not _is_number(self.rope_base) or self.rope_base <= 1:
            raise ValueError(f"rope_base is {self.rope_base!r}; it must be greater than 1")


MixerConfig = Mamba2Config | GatedDeltaNetConfig | AttentionConfig
MIXERS: dict[str, type[MixerConfig]] = {
    "mamba2": Mamba2Config,
    "gated_deltanet": GatedDeltaNetConfig,
    "attention": AttentionConfig,
}


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
            _check_count(name, getattr(self, name))
        if self.layers > MOST_LAYERS:
            raise ValueError(f"layers is {self.layers}; it must be at most {MOST_LAYERS:,}")
        for name in ("mlp_ratio", "norm_eps", "init_std"):
            _check_positive(name, getattr(self, name))
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


def _check_kind(config: Any) -> None:
    kind = next(field.default for field in dataclasses.fields(config) if field.name == "kind")
    if config.kind != kind:
        raise ValueError(f"kind is {config.kind!r}; {type(config).__name__} allows only {kind!r}")


def _check_memory(memory: Any) -> None:
    if not isinstance(memory, tuple(MEMORIES.values())):
        raise ValueError(f"memory is {memory!r}; it must be one of {', '.join(MEMORIES)}")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if value > LARGEST_COUNT:
        raise ValueError(f"{name} is {value}; it must be at most {LARGEST_COUNT:,}")


def _check_product(one: str, first: int, other: str, second: int) -> None:
    if first * second > LARGEST_COUNT:
        raise ValueError(f"{one} is {first} and {other} {second}; their product must be at most {LARGEST_COUNT:,}")


def _check_positive(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number greater than 0")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
