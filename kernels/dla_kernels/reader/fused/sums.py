"""Two sums that both update rules end their backward with."""

from __future__ import annotations

import torch
from torch import Tensor


def group_sums(gradient: Tensor, groups: int) -> Tensor:
    """`[tokens, H, K]` per head -> `[tokens, G, K]`: the heads of a group are added in order, in float32."""
    tokens, heads, key_dim = gradient.shape
    if heads == groups:
        return gradient
    total = gradient.view(tokens, groups, heads // groups, key_dim).sum(2, dtype=torch.float32)
    return total.to(gradient.dtype)


def sums_to_end(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Sums of `x` `[B, T, H]` from each token to the end of its sequence. float64 inside: documents are differences."""
    # over the last dimension: torch's sum over any other one waits for each element
    sums = x.transpose(1, 2).flip(2).cumsum(2, dtype=torch.float64).flip(2).transpose(1, 2)
    if cu_seqlens is not None:
        ends = cu_seqlens.to(x.device)[1:]
        after = torch.cat((sums, torch.zeros_like(sums[:, :1])), 1)[:, ends]  # [1, N, H]
        index = torch.searchsorted(ends, torch.arange(x.shape[1], device=x.device), right=True)
        sums = sums - after[:, index]
    return sums.to(x.dtype)
