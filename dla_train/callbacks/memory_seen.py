"""What a layer's memory did, as counts: exact, small, and added up over batches and ranks without loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels import Plan
from dla_train.models.context import Context

_OCTAVES = 20
LARGEST_SIZE = 16 * 2**_OCTAVES
"""Slots with more tokens than this are counted as having this many."""
SHARES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def _size_limits(device: torch.device | str) -> Tensor:
    """Made where they are needed: the host would wait for their copy to a GPU."""
    octaves = 16 * 2 ** torch.arange(_OCTAVES, device=device)
    eighths = octaves[:, None] // 8 * torch.arange(9, 17, device=device)
    return torch.cat([torch.arange(1, 17, device=device), eighths.flatten()])


SIZE_LIMITS = tuple(_size_limits("cpu").tolist())
"""Largest number of tokens in each bucket of slot sizes: every number up to 16, then eight to an octave."""


@dataclass(frozen=True)
class MemorySeen:
    """Counts over everything that one layer was seen to do; all int64.

    Attributes:
        tokens: tokens looked at. boundaries: `[H]`, how many of them opened a slot, by head.
        slots: `[M + 1]`; `slots[m]` counts the tokens, separately for each head, after which m slots were in use.
        sizes: `[buckets]`, how many slots had a size in each bucket (`SIZE_LIMITS`) when a sequence or document ended.
        held: the tokens in all those slots. `sizes` and `held` are zero for plans that do not look at the content.
    """

    tokens: int
    boundaries: Tensor
    slots: Tensor
    sizes: Tensor
    held: int

    @property
    def boundary_rate(self) -> float:
        """Share of tokens that open a slot."""
        return self.boundaries.sum().item() / (self.tokens * len(self.boundaries))

    @property
    def slots_in_use(self) -> float:
        """Mean number of slots in use after a token."""
        return (self.slots * torch.arange(len(self.slots))).sum().item() / self.slots.sum().item()

    @property
    def rates(self) -> Tensor:
        """Boundary rate of each head, `[H]` float64."""
        return self.boundaries.double() / self.tokens

    def summary(self) -> dict[str, float]:
        """The distributions in a few numbers; p10, p50 and p90 are their percentiles. Slot sizes above 16 are given as
        the largest of their bucket, which is up to an eighth above the true size."""
        found = {
            "boundary_rate": self.boundary_rate,
            "boundary_rate_lowest_head": self.rates.min().item(),
            "boundary_rate_highest_head": self.rates.max().item(),
            "slots_in_use_mean": self.slots_in_use,
            **_quantiles("slots_in_use", self.slots, range(len(self.slots))),
        }
        if number := self.sizes.sum().item():
            found["tokens_per_slot_mean"] = self.held / number
            found.update(_quantiles("tokens_per_slot", self.sizes, SIZE_LIMITS))
        return found


def _quantiles(name: str, counts: Tensor, values: tuple[int, ...] | range) -> dict[str, float]:
    reached = counts.cumsum(0)
    return {f"{name}_{label}": values[int((reached < reached[-1] * share).sum())] for label, share in SHARES.items()}


def count(plan: Plan, cu_seqlens: Tensor | None = None, heads: int | None = None) -> Tensor:
    """All counts of a plan in one vector, which may be added to another's; `unpack` takes it apart.

    Args:
        plan: `[B, T, H]`. cu_seqlens: documents, if the plan was made with them. heads: how many of the H to look at.
    Returns:
        int64, on the plan's device.
    """
    device = plan.shift.device
    slots = _histogram(plan.slots_in_use(cu_seqlens)[..., :heads], plan.capacity + 1)
    sizes = torch.zeros(len(SIZE_LIMITS), dtype=torch.int64, device=device)
    held = torch.zeros(1, dtype=torch.int64, device=device)
    if plan.final is not None:
        size = plan.final.count[:, :heads].long()
        # 0 is for slots that do not exist.
        bucket = torch.bucketize(size.clamp(max=LARGEST_SIZE), _size_limits(device)) + 1
        sizes = _histogram(bucket.where(size > 0, 0), len(SIZE_LIMITS) + 1)[1:]
        held = size.sum().reshape(1)
    tokens = torch.full((1,), plan.shift.shape[0] * plan.shift.shape[1], dtype=torch.int64, device=device)
    return torch.cat([tokens, held, plan.boundary[..., :heads].sum((0, 1)), slots, sizes])


def of_all_heads(counts: Tensor, capacity: int, context: Context, heads: int) -> Tensor:
    """The counts of a rank that sees only its own heads of windows that it shares, so that the sum over its group is
    what `count` gives for all `heads`."""
    tokens, held, boundaries, slots, sizes = _parts(counts, capacity)
    once = tokens if context.rank == 0 else torch.zeros_like(tokens)  # every rank of the group has seen them
    return torch.cat([once, held, context.placed(boundaries, heads), slots, sizes])


def unpack(counts: Tensor, capacity: int) -> MemorySeen:
    """The counts of a layer with room for `capacity` slots."""
    tokens, held, boundaries, slots, sizes = _parts(counts.cpu(), capacity)
    return MemorySeen(tokens=int(tokens), boundaries=boundaries, slots=slots, sizes=sizes, held=int(held))


def _parts(counts: Tensor, capacity: int) -> tuple[Tensor, ...]:
    heads = len(counts) - 2 - (capacity + 1) - len(SIZE_LIMITS)
    return counts.split((1, 1, heads, capacity + 1, len(SIZE_LIMITS)))


def _histogram(values: Tensor, size: int) -> Tensor:
    """How often each of 0 .. size - 1 occurs in `[..., H]`. Of a fixed shape, unlike `bincount`, so it compiles.

    Each of the H has counters of its own at first, because a GPU adds to one counter one at a time.
    """
    own = size * torch.arange(values.shape[-1], device=values.device)
    index = (values + own).flatten()
    counters = torch.zeros(size * len(own), dtype=torch.int64, device=values.device)
    return counters.scatter_add_(0, index, torch.ones_like(index)).view(-1, size).sum(0)
