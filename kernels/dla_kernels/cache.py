"""What the op remembers between two calls on the same sequences: prefill in pieces, then decode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dla_kernels.plan import SegmentState


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The slots of N sequences after `tokens` tokens. Its size does not depend on the sequence's length.

    Attributes:
        state: `[N, H, M, K, V]` float32 (float64 for float64 inputs), one matrix per physical slot.
        age: `[N, H, M]` int32, the age of each physical slot: a permutation of `0 .. M-1` in every row. Ages that no
            slot has yet belong to matrices of zeros. Physical slots stay where they are when ages move, so that opening
            a slot in decode costs one addition, not a shift of all states.
        tokens: `[N]` int64, tokens consumed so far.
        segment: where the segmentation stands; None for plans that do not look at the content.
        lag: `[N, H, M, 2]` float32, log decay not yet applied to `state`, so that a decoding step need not write the
            slots that it only reads. The last dimension holds a sum over steps and the part of it that rounding lost;
            the decay is `exp` of their sum. None if `state` is up to date.
        is_donated: see `donated`.
    """

    state: Tensor
    age: Tensor
    tokens: Tensor
    segment: SegmentState | None = None
    lag: Tensor | None = None
    is_donated: bool = False

    def state_by_age(self) -> Tensor:
        """`[N, H, M, K, V]`: the states in order of age, the open slot first."""
        order = self.age.long().argsort(-1)
        state = self.settled().state
        return state.gather(2, order[..., None, None].expand(state.shape))

    def settled(self) -> Cache:
        """The same past with `lag` applied to the states, and not donated."""
        state = self.state
        if self.lag is not None:
            state = state * self.lag.double().sum(-1).exp().to(state.dtype)[..., None, None]
        return replace(self, state=state, lag=None, is_donated=False)

    def donated(self) -> Cache:
        """The same past, given up to the next step, which may overwrite its states in place.

        After that step, neither this cache nor anything that shares tensors with it may be used. The cache that the
        step returns is donated, too. Decoding by Triton and on the CPU then writes only what changes: with plain decay
        one slot per token, or two where slots merge. Elsewhere it is treated as any other cache.
        """
        return replace(self, is_donated=True)

    @staticmethod
    def in_age_order(state: Tensor, tokens: Tensor, segment: SegmentState | None) -> Cache:
        """A cache whose physical slots are in order of age: `state` `[N, H, M, K, V]`, `tokens` `[N]`."""
        age = torch.arange(state.shape[2], dtype=torch.int32, device=state.device).expand(state.shape[:3])
        return Cache(state=state, age=age.contiguous(), tokens=tokens, segment=segment)
