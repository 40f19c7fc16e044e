"""Recipes at a size that a test can train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from dla_train.config.recipe import Recipe
from dla_train.models import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig


@pytest.fixture(scope="session")
def shrunk() -> Callable[[Recipe], Recipe]:
    """`shrunk(recipe)`: fewer and narrower layers, fewer and smaller heads, a short window, a small vocabulary; mixer,
    memory with all its slots, optimizer and schedule stay."""

    def smaller(mixer: MixerConfig) -> MixerConfig:
        match mixer:
            case Mamba2Config():
                return dataclasses.replace(mixer, heads=2 * mixer.groups, head_dim=8, state_dim=8)
            case GatedDeltaNetConfig():
                return dataclasses.replace(mixer, heads=2, key_dim=8, value_dim=16)
            case AttentionConfig():
                window = None if mixer.window is None else 12
                return dataclasses.replace(mixer, heads=2, kv_heads=None, window=window)

    def shrink(recipe: Recipe) -> Recipe:
        shape = {"vocab_size": 300, "hidden": 32, "layers": 2, "mixer": smaller(recipe.model.mixer)}
        hybrid = recipe.model.hybrid
        if hybrid is not None:
            hybrid = dataclasses.replace(hybrid, every=2, layers=None, mixer=smaller(hybrid.mixer))
        model = dataclasses.replace(recipe.model, hybrid=hybrid, **shape)
        data = dataclasses.replace(recipe.data, vocab_size=300, window=48)
        return dataclasses.replace(recipe, model=model, data=data)

    return shrink
