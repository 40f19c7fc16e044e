"""What limits the speed of each part on a device: its products, or the bytes that they move (the roofline model)."""

from __future__ import annotations

from collections import Counter

from dla_train.estimate.activations import WIDE, Setting, capacity_of, long_chunk, state_shape
from dla_train.estimate.devices import Device
from dla_train.estimate.flops import slots_in_window
from dla_train.estimate.work import Work
from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, MixerConfig

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
    a, hidden = setting.a, config.hidden
    mlp = _linear(hidden, 2 * config.mlp_hidden, setting) + _linear(config.mlp_hidden, hidden, setting)
    moved = {
        "mlp": config.layers * mlp,
        "head": a * (hidden + hidden * config.vocab_size / setting.tokens) + 3 * WIDE * config.vocab_size,
    }
    for mixer, blocks in Counter(config.mixers).items():
        for part, size in _moved_by_mixer(hidden, mixer, setting).items():
            moved[part] = moved.get(part, 0) + blocks * size
    return moved


def _linear(inputs: int, outputs: int, setting: Setting) -> float:
    """Bytes per token of one linear layer."""
    return setting.a * (inputs + outputs + inputs * outputs / setting.tokens)


def _moved_by_mixer(hidden: int, mixer: MixerConfig, setting: Setting) -> dict[str, float]:
    """Bytes per token of one layer's mixer."""
    a = setting.a
    if isinstance(mixer, AttentionConfig):
        pairs = mixer.keys_and_values(hidden)
        projections = _linear(hidden, hidden + pairs, setting) + _linear(hidden, hidden, setting)
        return {"mixer projections": projections, "softmax": a * (2 * hidden + pairs)}
    key_dim, value_dim = state_shape(mixer)
    groups = mixer.heads if isinstance(mixer, GatedDeltaNetConfig) else mixer.groups
    keys, values = 2 * groups * key_dim, mixer.heads * value_dim
    channels = keys + values
    slots = slots_in_window(mixer.memory, setting.window)
    # A state is written at a chunk's end and read at the next one's start; inside a chunk it stays in the cache.
    states = 2 * WIDE * slots * key_dim * value_dim / long_chunk(mixer, setting)
    reader = a * (channels + values) + mixer.heads * (WIDE * (capacity_of(mixer) + 2) + states)
    return {
        "mixer projections": _linear(hidden, channels + values, setting) + _linear(values, hidden, setting),
        "short convolution": 2 * a * channels,
        "slot weights": _linear(hidden, mixer.heads * capacity_of(mixer), setting),
        "plan": a * channels,
        "reader": reader,
    }
