"""What limits the speed of each part on a device: its products, or the bytes that they move (the roofline model)."""

from __future__ import annotations

from dla_train.estimate.activations import WIDE, Setting, capacity_of, long_chunk, state_shape
from dla_train.estimate.devices import Device
from dla_train.estimate.flops import slots_in_window
from dla_train.estimate.work import Work
from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig

COMPUTE, MEMORY, LATENCY = "compute", "memory traffic", "latency of a scan"


def bound_by(config: ModelConfig, work: dict[str, Work], setting: Setting, device: Device) -> dict[str, str]:
    """For each part of `work`, COMPUTE, MEMORY or LATENCY: compares FLOPs per byte with the device's ratio of the
    two."""
    ridge = device.peak(setting.precision) / device.bandwidth
    moved = _moved(config, setting)
    bounds = {part: COMPUTE if one.forward / moved[part] >= ridge else MEMORY for part, one in work.items()}
    if "plan" in bounds:
        bounds["plan"] = LATENCY  # sequential over the tokens of each sequence and head
    return bounds


def _moved(config: ModelConfig, setting: Setting) -> dict[str, float]:
    """Bytes per token that the forward pass moves to and from memory if each part reads and writes everything once."""
    a, hidden, mixer = setting.a, config.hidden, config.mixer

    def linear(inputs: int, outputs: int) -> float:
        """Bytes per token of one linear layer, over all layers."""
        return config.layers * a * (inputs + outputs + inputs * outputs / setting.tokens)

    moved = {
        "mlp": linear(hidden, 2 * config.mlp_hidden) + linear(config.mlp_hidden, hidden),
        "head": a * (hidden + hidden * config.vocab_size / setting.tokens) + 3 * WIDE * config.vocab_size,
    }
    if isinstance(mixer, AttentionConfig):
        projections = linear(hidden, 3 * hidden) + linear(hidden, hidden)
        return {**moved, "mixer projections": projections, "softmax": config.layers * 4 * a * hidden}
    key_dim, value_dim = state_shape(mixer)
    groups = mixer.heads if isinstance(mixer, GatedDeltaNetConfig) else mixer.groups
    keys, values = 2 * groups * key_dim, mixer.heads * value_dim
    channels = keys + values
    slots = slots_in_window(mixer.memory, setting.window)
    # A state is written at a chunk's end and read at the next one's start; inside a chunk it stays in the cache.
    states = 2 * WIDE * slots * key_dim * value_dim / long_chunk(config, setting)
    reader = a * (channels + values) + mixer.heads * (WIDE * (capacity_of(mixer) + 2) + states)
    return {
        **moved,
        "mixer projections": linear(hidden, channels + values) + linear(values, hidden),
        "short convolution": config.layers * 2 * a * channels,
        "slot weights": linear(hidden, mixer.heads * capacity_of(mixer)),
        "plan": config.layers * a * channels,
        "reader": config.layers * reader,
    }
