"""The longest windows that a device has room for, one at a time."""

from __future__ import annotations

import math
from dataclasses import replace

from dla_train.config.recipe import Recipe
from dla_train.estimate.activations import Setting, saved_bytes
from dla_train.estimate.footprint import logit_bytes
from dla_train.estimate.op_memory import op_memory
from dla_train.models.config import ModelConfig

STEP = 1024
"""Lengths are multiples of this."""
MOST = 2**24
"""Windows that are this long or longer are not looked at, but for the first of them."""

_WAYS = ("none", "selective", "full")
"""Values of `training.activation_checkpointing`."""


def longest_windows(recipe: Recipe, setting: Setting, beside: int, room: int) -> dict[str, int]:
    """Tokens of the longest window by `training.activation_checkpointing`, a multiple of STEP that the devices can
    share evenly; 0 if not even the shortest one fits.

    Args:
        recipe: whose model reads it. setting: of its micro-batches, of which only windows and rows are changed.
        beside: bytes that lie on the device whatever the window. room: bytes that may be used in all.
    """
    found = {}
    for way in _WAYS:
        if way == "selective" and recipe.training.compile:  # refused together
            continue
        training = replace(recipe.training, activation_checkpointing=way)
        kept = replace(setting, recompute_every=training.recompute_every, selective=training.recompute_selectively)
        found[way] = _longest(recipe.model, kept, room - beside)
    return found


def _longest(config: ModelConfig, setting: Setting, room: int) -> int:
    step = math.lcm(STEP, setting.shared)
    fits, too_long = 0, -(-MOST // step) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _bytes(config, replace(setting, batch=1, window=middle * step)) <= room:
            fits = middle
        else:
            too_long = middle
    return fits * step


def _bytes(config: ModelConfig, setting: Setting) -> int:
    """What grows with the window."""
    return sum(saved_bytes(config, setting).values()) + op_memory(config, setting) + logit_bytes(config, setting)
