"""What a device sends to the others that share its windows (`strategy.context_parallel`): in front of every mixer the
channels of their heads for its slice, and behind it the results of its own heads for their slices."""

from __future__ import annotations

from dla_train.config.recipe import Recipe
from dla_train.estimate.activations import Setting
from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig


def sent_bytes(recipe: Recipe, devices: int, setting: Setting) -> int:
    """Bytes that one of `devices` sends in a step to share windows, without validation; 0 if it has whole ones.

    Args:
        setting: of a micro-batch.
    """
    training = recipe.training
    micro_batches = training.global_batch // training.micro_batch // (devices // setting.shared)
    channels = 0
    for index, mixer in enumerate(recipe.model.mixers):
        # Gradients go the opposite way, and a block that is computed again exchanges again.
        is_recomputed = training.recompute_every is not None and index % training.recompute_every == 0
        channels += (3 if is_recomputed else 2) * _channels(recipe.model, mixer, setting)
    return micro_batches * setting.tokens * setting.a * (setting.shared - 1) * channels


def _channels(config: ModelConfig, mixer: MixerConfig, setting: Setting) -> int:
    """What each of the others gets of a token, in front of the mixer and behind it."""

    def share(number: int) -> int:
        return setting.computed(number) // setting.shared

    heads = share(mixer.heads)
    match mixer:
        case AttentionConfig():
            return 2 * (heads + share(mixer.key_heads)) * (config.hidden // mixer.heads)
        case Mamba2Config():
            channels = heads * (2 * mixer.head_dim + 1) + 2 * share(mixer.groups) * mixer.state_dim
        case GatedDeltaNetConfig():
            channels = heads * (2 * mixer.key_dim + 2 * mixer.value_dim + 2)
    return channels + (0 if mixer.memory.kind == "single" else heads * mixer.memory.capacity)
