"""What a plan is: for every token and head, which slot it enters and which slots grow older.

One integer per token describes the whole history of a partition (README.md, "The method"), so a plan is a tensor, not a
list of segments. A reader turns it into outputs without knowing how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.documents import first_tokens, positions

JOIN = -1
"""The value of `Plan.shift` at a token that joins the open slot."""


@dataclass(frozen=True, kw_only=True)
class SegmentState:
    """Where `segment` stopped, so that it can go on: all that eqs. 13 to 17 need of the past.

    Attributes:
        open_sum: `[N, H, K, V]` float32, the plain sum of `k_t v_t^T` over the open segment (no decay, no delta rule).
        score_sum: `[N, H, M]` float32, by age: the sum of the scores of the tokens in each slot (Ibar of eq. 16).
        count: `[N, H, M]` int32, by age: tokens held by each slot; 0 where no slot exists.

    `N` is the batch, or the number of documents where `cu_seqlens` was given.
    """

    open_sum: Tensor
    score_sum: Tensor
    count: Tensor


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which tokens share a state, and which states are merged when.

    Attributes:
        shift: `[B, T, H]` int32. What token t does before it is written, by slot age (0 = the open slot):
            `-1` it joins the open slot and nothing moves; `a` in `0 .. M-2` the slots of age `a` and `a + 1` merge and
            the token opens a slot; `M` it opens a slot and there is room. In both of the last cases every slot of age
            `<= shift` gets one older (`age += age <= shift`).
        score: `[B, T, H]` float32, the State Information Score of eq. 13; 0 for the first token of a document, and
            everywhere in plans that do not look at the content.
        capacity: M, the largest number of slots.
        gate: None, or `[B, T, H]` float32 that holds the boundary decision (0 or 1) and carries its straight-through
            gradient.
        collapse: the age map of Log-Linear attention: at a token with `shift = l >= 0`, *all* slots of age `<= l` are
            added together and become age `l + 1`, instead of each growing older by one.
        final: what `segment` needs to go on after the last token; None in plans that do not look at the content.
    """

    shift: Tensor
    score: Tensor
    capacity: int
    gate: Tensor | None = None
    collapse: bool = False
    final: SegmentState | None = None

    @property
    def boundary(self) -> Tensor:
        """`[B, T, H]` bool: whether the token opens a slot (the first token of a document does, too)."""
        return self.shift != JOIN

    def slots_in_use(self, cu_seqlens: Tensor | None = None) -> Tensor:
        """`[B, T, H]` int64: how many ages exist after each token, including the empty levels of a Fenwick plan.

        Args:
            cu_seqlens: `[N + 1]` document boundaries, if the plan was made with them. A plan that continues a cache
                counts from its own first token.
        """
        # Heads come first, because torch's running sum over any but the last dimension goes token by token on a GPU.
        time = self.shift.shape[1]
        starts = first_tokens(cu_seqlens, time, self.shift.device)
        if self.collapse:
            level = torch.clamp(self.shift.long() + 1, max=self.capacity - 1).transpose(1, 2)
            level = torch.where(starts, 0, level).contiguous()
            return (_cummax_since(level, starts, self.capacity) + 1).transpose(1, 2)
        count = torch.where(starts, True, self.boundary.transpose(1, 2)).long().contiguous().cumsum(2)
        first = torch.arange(time, device=starts.device) - positions(cu_seqlens, time, starts.device)
        in_document = count - count.index_select(2, first) + 1
        return torch.clamp(in_document, max=self.capacity).transpose(1, 2)


def _cummax_since(values: Tensor, starts: Tensor, limit: int) -> Tensor:
    """Running maximum of `values` `[..., T]` in [0, `limit`) that begins anew where `starts` `[T]` is set."""
    before = starts.long().cumsum(0) * limit
    return (values + before).cummax(-1).values - before
