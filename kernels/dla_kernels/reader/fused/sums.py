"""The sum over the heads of a group, with which both update rules end their backward."""

from __future__ import annotations

import torch
from torch import Tensor


def group_sums(gradient: Tensor, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """`[tokens, H, K]` per head -> `[tokens, G, K]` in dtype (None: the same): the heads of a group are added in order,
    in float32. With as many groups as heads, the gradient is returned unchanged."""
    tokens, heads, key_dim = gradient.shape
    if heads == groups:
        return gradient
    total = gradient.view(tokens, groups, heads // groups, key_dim).sum(2, dtype=torch.float32)
    return total.to(gradient.dtype if dtype is None else dtype)
