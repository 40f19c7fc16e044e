"""Inputs of the op with meaningful segments, and plans of every kind for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dla_kernels import Cache, Plan, fenwick_plan, fixed_plan, segment, single_plan

THRESHOLDS = (0.02, 0.3, 0.5, 1.9)
"""One per head, for boundaries at nearly every token, at some tokens (twice), and almost never
(test_boundary_rates.py)."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything the op reads, `[B, T, ...]`; heads H a multiple of groups G."""

    q: Tensor
    k: Tensor
    v: Tensor
    slot_weight: Tensor
    log_decay: Tensor | None
    beta: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """The inputs that are not None, by their names in `multi_state_attention`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return replace(self, **{name: change(x) for name, x in self.named().items()})

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.map(lambda x: x.to(dtype))

    def tokens(self, begin: int, end: int) -> Inputs:
        return self.map(lambda x: x[:, begin:end])

    def leaves(self) -> Inputs:
        """The same values as leaves that require a gradient."""
        return self.map(lambda x: x.detach().clone().requires_grad_())


def correlated(shape: tuple[int, int, int, int], persistence: float, generator: torch.Generator) -> Tensor:
    """AR(1) features `[B, T, heads, D]` of unit variance: neighboring tokens resemble each other, distant ones do
    not."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    steps = [noise[:, 0]]
    for t in range(1, shape[1]):
        steps.append(persistence * steps[-1] + (1 - persistence**2) ** 0.5 * noise[:, t])
    return torch.stack(steps, 1)


def inputs_of(
    time: int,
    capacity: int,
    *,
    delta: bool = False,
    decay: bool = True,
    batch: int = 1,
    groups: int = 2,
    heads: int = 4,
    key_dim: int = 5,
    value_dim: int = 3,
    persistence: float = 0.95,
    seed: int = 0,
) -> Inputs:
    """Float64 inputs. Keys have norm 1, as the delta rule needs; sizes are no powers of two."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    keys = correlated((batch, time, groups, key_dim), persistence, generator)
    return Inputs(
        q=torch.randn(batch, time, groups, key_dim, generator=generator, dtype=torch.float64),
        k=torch.nn.functional.normalize(keys, dim=-1),
        v=correlated((batch, time, heads, value_dim), persistence, generator),
        slot_weight=2 * uniform(batch, time, heads, capacity),
        log_decay=-0.2 * uniform(batch, time, heads) if decay else None,
        beta=uniform(batch, time, heads) if delta else None,
    )


def plan_of(
    kind: str,
    inputs: Inputs,
    *,
    cu_seqlens: Tensor | None = None,
    cache: Cache | None = None,
    threshold: float | Tensor | None = None,
    **options: Any,
) -> Plan:
    """A plan of any kind, continuing from a cache if one is given; each head has its own threshold unless one is
    given."""
    sizes = inputs.v.shape[:3]
    capacity = inputs.slot_weight.shape[3]
    start = 0 if cache is None else cache.tokens
    if kind == "dynamic":
        tau = torch.tensor(THRESHOLDS[: sizes[2]]) if threshold is None else threshold
        return segment(inputs.k, inputs.v, capacity, tau, cu_seqlens, cache=cache, **options)
    if kind == "single":
        return single_plan(*sizes, **options)
    if kind == "fixed":
        return fixed_plan(*sizes, block=7, capacity=capacity, cu_seqlens=cu_seqlens, start=start, **options)
    return fenwick_plan(*sizes, capacity=capacity, cu_seqlens=cu_seqlens, start=start, **options)
