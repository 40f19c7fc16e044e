"""FLOPs of a model per token, by part; used both by `dla-train estimate` and for the MFU of a run."""

from __future__ import annotations

from collections import Counter

from dla_train.estimate.reader_work import plan_work, reader_work
from dla_train.estimate.work import NONE, Work, linear, product
from dla_train.models.config import ModelConfig
from dla_train.models.memory_config import DynamicMemory, FenwickMemory, FixedMemory, MemoryConfig
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig


def model_work(config: ModelConfig, window: int) -> dict[str, Work]:
    """FLOPs per token, all layers together.

    Args:
        config: of the model. window: tokens that it sees at once, on which the cost of softmax attention and the number
            of filled slots depend.
    Returns:
        by part; a part that the model does not have is left out. The embedding is a look-up and costs none.
    """
    mlp = linear(config.hidden, 2 * config.mlp_hidden) + linear(config.mlp_hidden, config.hidden)
    parts: dict[str, Work] = {}
    for mixer, blocks in Counter(config.mixers).items():
        for name, work in _mixer(config.hidden, mixer, window).items():
            if work != NONE:
                parts[name] = parts.get(name, NONE) + work.times(blocks)
    if mlp != NONE:
        parts["mlp"] = mlp.times(config.layers)
    return {**parts, "head": linear(config.hidden, config.vocab_size)}


def training_flops(config: ModelConfig, window: int) -> float:
    """FLOPs that training takes per token, forward and backward."""
    return sum(work.training for work in model_work(config, window).values())


def slots_in_window(memory: MemoryConfig, window: int) -> int:
    """How many slots a window of this length can fill, which is the number that the reader's FLOPs are counted for."""
    match memory:
        case FixedMemory():
            return min(memory.capacity, -(-window // memory.block))
        case FenwickMemory():
            return min(memory.capacity, (window - 1).bit_length() + 1)
        case DynamicMemory():
            return min(memory.capacity, window)
        case _:
            return 1


def has_gate(memory: MemoryConfig) -> bool:
    """Whether a gradient reaches the boundaries."""
    return isinstance(memory, DynamicMemory) and memory.gate == "straight_through"


def keys_read(mixer: AttentionConfig, window: int) -> float:
    """How many keys a token of a window reads on average: token t reads t + 1, or as many as the mixer's own window
    has."""
    reach = window if mixer.window is None else min(window, mixer.window)
    return (reach * (reach + 1) / 2 + (window - reach) * reach) / window


def _mixer(hidden: int, mixer: MixerConfig, window: int) -> dict[str, Work]:
    """FLOPs per token of one layer's mixer, by part."""
    match mixer:
        case AttentionConfig():
            attention = product(2 * 2 * hidden * keys_read(mixer, window))  # for the scores and for the values
            projections = linear(hidden, hidden + mixer.keys_and_values(hidden)) + linear(hidden, hidden)
            return {"mixer projections": projections, "softmax": attention}
        case Mamba2Config():
            heads, groups, key_dim, value_dim = mixer.heads, mixer.groups, mixer.state_dim, mixer.head_dim
            inner = heads * value_dim
            channels = inner + 2 * groups * key_dim
            projected = inner + channels + heads
        case GatedDeltaNetConfig():
            heads, groups, key_dim, value_dim = mixer.heads, mixer.heads, mixer.key_dim, mixer.value_dim
            inner = heads * value_dim
            channels = inner + 2 * heads * key_dim
            projected = inner + channels + 2 * heads
    memory = mixer.memory
    slots, gate = slots_in_window(memory, window), has_gate(memory)
    stages = reader_work(
        heads=heads,
        groups=groups,
        key_dim=key_dim,
        value_dim=value_dim,
        slots=slots,
        delta=isinstance(mixer, GatedDeltaNetConfig),
        gate=gate,
    )
    is_dynamic = isinstance(memory, DynamicMemory)
    return {
        "mixer projections": linear(hidden, projected) + linear(inner, hidden),
        "short convolution": product(2 * mixer.conv_width * channels),
        "slot weights": NONE if memory.kind == "single" else linear(hidden, heads * memory.capacity),
        "plan": plan_work(heads=heads, key_dim=key_dim, value_dim=value_dim, gate=gate) if is_dynamic else NONE,
        "reader": sum(stages.values(), NONE),
    }
