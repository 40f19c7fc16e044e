"""Sizes of tiles: chosen by shape and type, never by the number of tokens.

A small table rather than autotuning: packed data changes its number of tokens, chunks and documents with every batch, and
a tuner keyed on any of them would tune for ever. `override` is for tests and for tuning on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Attributes:
    tile: tokens in a tile, TILE. long: tokens in a chunk, LONG, a multiple of it.
    block_k, block_v: the part of K and of V that one product takes.
    warps: of the kernels with products. At most 4: see TRITON.md, "What to avoid".
    """

    tile: int
    long: int
    block_k: int
    block_v: int
    warps: int = 4


_override: ContextVar[dict[str, int] | None] = ContextVar("tiles_override", default=None)


@contextmanager
def override(**sizes: int) -> Iterator[None]:
    """Within the context, sizes given by the names of `Tiles` replace those chosen."""
    token = _override.set(sizes)
    try:
        yield
    finally:
        _override.reset(token)


def tiles_for(key_dim: int, value_dim: int, slots: int, dtype: torch.dtype) -> Tiles:
    """The sizes to use for one shape."""
    # float32 products run on the slow units and need twice the registers: half the block.
    widest = 32 if dtype == torch.float32 else 64
    chosen = Tiles(
        tile=64,
        # Stored states cost M K V / LONG numbers per token and head. 512 keeps the paper's shapes under 4 GB at 16K
        # tokens; where states are small, shorter chunks save work on pairs.
        long=512 if slots * key_dim * value_dim > 2**17 else 256,
        block_k=min(widest, _block(key_dim)),
        block_v=min(widest, _block(value_dim)),
    )
    return replace(chosen, **(_override.get() or {}))


def _block(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
