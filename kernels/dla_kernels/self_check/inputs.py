"""Inputs of the op as layers make them, with segments that a threshold finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RUN = 16
"""Tokens that resemble each other, before others follow."""
NOISE = 0.15
"""How much they differ; with it, a threshold of `THRESHOLD` finds the runs."""
THRESHOLD = 0.6
SLOW, SUDDEN = 0.001, 0.7
"""Decay of most tokens, and of a few, both at most. With it the first of a thousand tokens still count at the last, so
that slots of every age are seen in the output; and where a decay comes a token early or late, or not at all, what the
tokens there give is off by tens of percent."""
RARE = 256
"""One in how many tokens decays suddenly, and every other time the first and the last token of a chunk do."""
CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class OpShape:
    """Sizes of one layer's op.

    Attributes:
        heads: H. groups: G. key_dim: K. value_dim: V. slots: M. delta: whether it has the gated delta rule.
    """

    heads: int
    groups: int
    key_dim: int
    value_dim: int
    slots: int
    delta: bool = False


def draw(shape: OpShape, tokens: int, dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Inputs of the op by name, the same on every device: q, k `[1, T, G, K]` (k of length one) and v `[1, T, H, V]`
    in `dtype`; slot_weight `[1, T, H, M]`, log_decay and, for the delta rule, beta `[1, T, H]` in float32."""
    generator = torch.Generator().manual_seed(seed)

    def alike(heads: int, size: int) -> Tensor:
        runs = torch.randn(1, -(-tokens // RUN), heads, size, generator=generator)
        return runs.repeat_interleave(RUN, 1)[:, :tokens] + NOISE * torch.randn(
            1, tokens, heads, size, generator=generator
        )

    k = torch.nn.functional.normalize(alike(shape.groups, shape.key_dim), dim=-1)
    drawn = {"q": torch.randn(k.shape, generator=generator), "k": k, "v": alike(shape.heads, shape.value_dim)}
    drawn = {name: x.to(dtype) for name, x in drawn.items()}
    drawn["slot_weight"] = 0.5 + torch.rand(1, tokens, shape.heads, shape.slots, generator=generator)
    drawn["log_decay"] = _log_decay(tokens, shape.heads, generator)
    if shape.delta:
        drawn["beta"] = torch.rand(1, tokens, shape.heads, generator=generator)
    return {name: x.to(device) for name, x in drawn.items()}


def _log_decay(tokens: int, heads: int, generator: torch.Generator) -> Tensor:
    """`[1, T, H]`."""
    place = torch.arange(tokens)[:, None] % CHUNK
    share = torch.where((place == 0) | (place == CHUNK - 1), 0.5, 1 / RARE)  # [T, 1]
    size, chance = torch.rand(2, 1, tokens, heads, generator=generator)
    return -size * torch.where(chance < share, SUDDEN, SLOW)
