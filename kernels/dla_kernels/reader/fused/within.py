# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""How token j is read at token t of the same chunk, apart from slot weights: decays, and the matrix Mx if it is stored.

Plain decay: `Mx[t, j] = scale (q_t . k_j) exp(G_t - G_j)`, computed where it is needed. From j to a token t of a later
tile, the decay is a product of three: up to the end of j's tile, a function of j alone; over the tiles between them;
and from the token before t's tile to t, a function of t alone, which is part of the weights (weights.py). G never
rises, so none of them is above one. If heads share q and k, the products are stored (shared_products.py). Delta rule:
Mx is a matrix `[tokens, H, LONG]` from delta_chunks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Within:
    """The part of Mx that is computed beforehand.

    Attributes:
        stored: `[tokens, W, LONG]` in the type of products, or None if q and k are multiplied where they are needed.
        decayed: whether `stored` is Mx itself (W = H), with decay and scale. Otherwise it is `scale q_t . k_j` (W = G).
    """

    stored: Tensor | None
    decayed: bool

    def sizes(self) -> dict[str, int | bool]:
        """The constants of kernels: W, and which case it is."""
        heads = 1 if self.stored is None else self.stored.shape[1]
        return {"W": heads, "STORED": self.stored is not None, "DECAYED": self.decayed}


@triton.jit
def until_end(total_ptr, first, rows, end, TILE: tl.constexpr):
    """`exp(G_r - G_j)` `[TILE]` from a tile's tokens j to its last one r, 0 for missing tokens; `end` is G_r, total_ptr
    a head's. For kernels that go from one j to many t; the others load it from a table (decay.py)."""
    row = tl.arange(0, TILE)
    return tl.exp(end - tl.load(total_ptr + first + row, mask=row < rows, other=float("inf")))


@triton.jit
def own_decays(total_ptr, first, rows, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """`exp(G_t - G_j)` `[TILE, TILE]` of the tokens of one tile, rows t (TRANSPOSED: rows j), 0 for j > t."""
    row = tl.arange(0, TILE)
    total = tl.load(total_ptr + first + row, mask=row < rows, other=0.0)
    if TRANSPOSED:
        between = total[None, :] - total[:, None]
    else:
        between = total[:, None] - total[None, :]
    return tl.exp(tl.where(causal(rows, TILE, TRANSPOSED), between, float("-inf")))


@triton.jit
def causal(rows, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Which pairs of one tile exist: j up to t, t among the first `rows`; rows t (TRANSPOSED: rows j)."""
    row = tl.arange(0, TILE)
    if TRANSPOSED:
        return (row[:, None] <= row[None, :]) & (row < rows)[None, :]
    else:
        return (row[None, :] <= row[:, None]) & (row < rows)[:, None]


@triton.jit
def own_stored(
    within_ptr, tile, rows, H: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Mx of the tokens of one tile `[TILE, TILE]` float32, rows t (TRANSPOSED: rows j), 0 for j > t."""
    there = tl.arange(0, TILE) < rows
    # loads whole rows of existing tokens and masks afterwards: with a mask per number, each number would be a load
    mask = there[None, :] if TRANSPOSED else there[:, None]
    at = stored_tile(tile * TILE, tile * TILE, H, LONG, TILE, TRANSPOSED)
    within = tl.load(within_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(causal(rows, TILE, TRANSPOSED), within, 0.0)


@triton.jit
def stored_tile(t, j, H: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Offsets, in 32 bits, of the pairs of two tiles in Mx from the chunk's first row on; t, j: where the tiles begin
    in the chunk."""
    row = tl.arange(0, TILE)
    if TRANSPOSED:
        return (t + row)[None, :] * (H * LONG) + (j + row)[:, None]
    else:
        return (t + row)[:, None] * (H * LONG) + (j + row)[None, :]
