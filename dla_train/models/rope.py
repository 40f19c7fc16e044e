"""Rotary positions (arXiv 2104.09864): the product of two rotated vectors depends only on the distance of their
positions."""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.layers.precision import at_least_float32


def rotate(x: Tensor, positions: Tensor, *, base: float) -> Tensor:
    """Rotates channel pairs `(i, i + D / 2)` by the angle `position * base^(-2 i / D)`.

    Args:
        x: `[..., T, D]`, D even. positions: `[T]`. base: base of the frequencies.
    Returns:
        the same shape and type as `x`.
    """
    wide = at_least_float32(x)
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=wide.dtype, device=x.device) / half)
    angle = positions.to(wide.dtype)[:, None] * frequency  # [T, D / 2]
    cosine, sine = angle.cos(), angle.sin()
    first, second = wide[..., :half], wide[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)
