"""FLOPs of a model per token, by part; used both by `dla-train estimate` and for the MFU of a run."""

from __future__ import annotations

from dla_train.estimate.reader_work import plan_work, reader_work
from dla_train.estimate.work import NONE, Work, linear, product
from dla_train.models.config import ModelConfig
from dla_train.models.memory_config import DynamicMemory, FenwickMemory, FixedMemory, MemoryConfig
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config


def model_work(config: ModelConfig, window: int) -> dict[str, Work]:
    """FLOPs per token, all layers together.

    Args:
        config: of the model. window: tokens that it sees at once, on which the cost of softmax attention and the number
            of filled slots depend.
    Returns:
        by part; a part that the model does not have is left out. The embedding is a look-up and costs none.
    """
    layer = _mixer(config, window)
    layer["mlp"] = linear(config.hidden, 2 * config.mlp_hidden) + linear(config.mlp_hidden, config.hidden)
    parts = {name: work.times(config.layers) for name, work in layer.items() if work != NONE}
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


def _mixer(config: ModelConfig, window: int) -> dict[str, Work]:
    """FLOPs per token of one layer's mixer, by part."""
    hidden, mixer = config.hidden, config.mixer
    match mixer:
        case AttentionConfig():
            # Token t reads t + 1 keys: (window + 1) / 2 on average, for the scores and for the values.
            attention = product(2 * 2 * hidden * (window + 1) / 2)
            return {"mixer projections": linear(hidden, 3 * hidden) + linear(hidden, hidden), "softmax": attention}
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
