"""What mixes the tokens of a block: `mixer` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dla_train.models.config_checks import check_count, check_kind, check_product, is_number
from dla_train.models.memory_config import MEMORIES, MemoryConfig


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
        check_kind(self)
        for name in ("heads", "head_dim", "state_dim", "groups", "conv_width"):
            check_count(name, getattr(self, name))
        if self.heads % self.groups:
            raise ValueError(f"heads is {self.heads} and groups is {self.groups}; heads must be a multiple of groups")
        check_product("heads", self.heads, "head_dim", self.head_dim)
        check_product("groups", self.groups, "state_dim", self.state_dim)
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
        check_kind(self)
        for name in ("heads", "key_dim", "value_dim", "conv_width"):
            check_count(name, getattr(self, name))
        check_product("heads", self.heads, "key_dim", self.key_dim)
        check_product("heads", self.heads, "value_dim", self.value_dim)
        _check_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal softmax attention: the baseline, whose cache grows with every token unless it has a window.

    Attributes:
        heads: number of heads; divides the model's `hidden` into an even head width.
        kv_heads: number of heads of keys and values, each shared by `heads / kv_heads` heads of queries (grouped
            queries, arXiv 2305.13245); null for as many as `heads`.
        window: how many tokens each token reads, itself and those right before it (sliding window); null for all.
        rope_base: base of the rotary frequencies; null for no positions, as in some hybrid models, where the other
            mixers know the order of the tokens.
    """

    kind: Literal["attention"] = "attention"
    heads: int
    kv_heads: int | None = None
    window: int | None = None
    rope_base: float | None = 500_000.0

    def __post_init__(self) -> None:
        check_kind(self)
        check_count("heads", self.heads)
        for name in ("kv_heads", "window"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        if self.heads % self.key_heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads} and heads is {self.heads}; heads must be a multiple of kv_heads"
            )
        base = self.rope_base
        if base is not None and (not is_number(base) or base <= 1):
            raise ValueError(f"rope_base is {base!r}; it must be greater than 1, or null for no positions")

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def keys_and_values(self, hidden: int) -> int:
        """Channels of keys and values together, in a model of width `hidden`."""
        return 2 * self.key_heads * hidden // self.heads


MixerConfig = Mamba2Config | GatedDeltaNetConfig | AttentionConfig
MIXERS: dict[str, type[MixerConfig]] = {
    "mamba2": Mamba2Config,
    "gated_deltanet": GatedDeltaNetConfig,
    "attention": AttentionConfig,
}


def memory_of(mixer: MixerConfig) -> MemoryConfig | None:
    """The memory of a linear mixer; None for softmax attention."""
    return None if isinstance(mixer, AttentionConfig) else mixer.memory


def check_mixer(name: str, mixer: Any) -> None:
    """Refuse (ValueError) what is no mixer."""
    if not isinstance(mixer, tuple(MIXERS.values())):
        raise ValueError(f"{name} is {mixer!r}; it must be one of {', '.join(MIXERS)}")


def _check_memory(memory: Any) -> None:
    if not isinstance(memory, tuple(MEMORIES.values())):
        raise ValueError(f"memory is {memory!r}; it must be one of {', '.join(MEMORIES)}")
