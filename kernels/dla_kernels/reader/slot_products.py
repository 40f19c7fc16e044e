"""The read over m slots as a single matrix product of inner length m K, and its transpose."""

from __future__ import annotations

from torch import Tensor


def weigh(weight: Tensor, vectors: Tensor) -> Tensor:
    """`[w_1 * Qe, ..., w_m * Qe]`: weight `[R, C, m]`, vectors `[R, C, K]` -> `[R, C, m K]`."""
    return (weight[..., None] * vectors[..., None, :]).flatten(2)


def tall(states: Tensor) -> Tensor:
    """`[S_1; ...; S_m]`: `[R, m, K, V]` -> `[R, m K, V]`."""
    return states.flatten(1, 2)


def add_outer(total: Tensor, weight: Tensor, vectors: Tensor, do: Tensor) -> None:
    """`total[i] += sum_t weight[t, i] Qe_t^T do_t`, as `[m K, C] @ [C, V]`; changes `total` `[R, M, K, V]` in place."""
    slots = weight.shape[-1]
    product = weigh(weight, vectors).transpose(-1, -2) @ do
    total[:, :slots] += product.unflatten(1, (slots, -1))


def by_row(x: Tensor) -> Tensor:
    """`[B, H, ...]` -> `[R, ...]`."""
    return x.flatten(0, 1)
