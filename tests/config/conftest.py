"""Recipes at a size that a test can train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from dla_train.config.recipe import Recipe
from dla_train.models import AttentionConfig, GatedDeltaNetConfig, Mamba2Config


@pytest.fixture(scope="session")
def shrunk() -> Callable[[Recipe], Recipe]:
    """`shrunk(recipe)`: fewer and narrower layers, fewer and smaller heads, a short window, a small vocabulary; mixer,
    memory with all its slots, optimizer and schedule stay."""

    def shrink(recipe: Recipe) -> Recipe:
        mixer: Any = recipe.model.mixer
        match mixer:
            case Mamba2Config():
                mixer = dataclasses.replace(mixer, heads=2 * mixer.groups, head_dim=8, state_dim=8)
            case GatedDeltaNetConfig():
                mixer = dataclasses.replace(mixer, heads=2, key_dim=8, value_dim=16)
            case AttentionConfig():
                mixer = dataclasses.replace(mixer, heads=2)
        model = dataclasses.replace(recipe.model, vocab_size=300, hidden=32, layers=2, mixer=mixer)
        data = dataclasses.replace(recipe.data, vocab_size=300, window=48)
        return dataclasses.replace(recipe, model=model, data=data)

    return shrink
