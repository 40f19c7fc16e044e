"""From what tiles do to a state to what their chunk does, for the delta rule: `dla::compose_tiles` and its backward.

Queries go back to the chunk's start, writes on to its end (carried_rows.py), and what the chunk removes is summed up
(removals.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.reader.fused.carried_rows import TileTable, carry_rows, carry_rows_backward
from dla_kernels.reader.fused.removals import removals, removals_backward


@torch.library.custom_op("dla::compose_tiles", mutates_args=())
def compose_tiles(
    own: Tensor, read: Tensor, write: Tensor, keys: Tensor, kept: Tensor, from_start: Tensor, sequence: Tensor,
    number: Tensor, cu: Tensor, first_chunk: Tensor, tokens: int, chunks: int, tile: int, long: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Mx `[tokens, H, LONG]` in `dtype`, in which products run; of the chunks, float32: Qe, U `[H, tiles TILE, K]` and R
    `[chunks, H, K, K]`.

    Of tiles, float32: own = Mx `[H, tiles, TILE, TILE]`, read = Qe, write = U, keys = K `[H, tiles TILE, K]`; kept
    `[H, tiles]` and what is kept from the chunk's start to the tile's. The rest: see `TileTable`.
    """
    table = TileTable(
        sequence=sequence, number=number, cu=cu, first_chunk=first_chunk, chunks=chunks, tile=tile, long=long
    )
    own, read, write, keys, kept, from_start = (x.contiguous() for x in (own, read, write, keys, kept, from_start))
    left, right = write.to(dtype), keys.to(dtype)
    within = torch.zeros(tokens, read.shape[0], long, dtype=dtype, device=read.device)
    read = carry_rows(read, left, right, kept, table, up=False, within=within, own=own)
    write = carry_rows(write, right, left, kept, table, up=True)
    return within, read, write, removals(write.to(dtype), right, from_start, table)


@compose_tiles.register_fake
def _(
    own, read, write, keys, kept, from_start, sequence, number, cu, first_chunk, tokens, chunks, tile, long, dtype
):  # fmt: skip
    heads, _, key_dim = read.shape
    within = read.new_empty(tokens, heads, long, dtype=dtype)
    return (
        within,
        read.new_empty(read.shape),
        write.new_empty(write.shape),
        read.new_empty(chunks, heads, key_dim, key_dim),
    )


@torch.library.custom_op("dla::compose_tiles_backward", mutates_args=())
def compose_tiles_backward(
    dwithin: Tensor, dread: Tensor, dwrite: Tensor, dremoval: Tensor, read: Tensor, write: Tensor, keys: Tensor,
    kept: Tensor, from_start: Tensor, sequence: Tensor, number: Tensor, cu: Tensor, first_chunk: Tensor, chunks: int,
    tile: int, long: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """d own, d read, d write, d keys, d kept and d from_start, all float32."""
    table = TileTable(
        sequence=sequence, number=number, cu=cu, first_chunk=first_chunk, chunks=chunks, tile=tile, long=long
    )
    dwithin, dread, dwrite, read, write, keys, kept, from_start = (
        x.contiguous() for x in (dwithin, dread, dwrite, read, write, keys, kept, from_start)
    )
    left, right = write.to(dtype), keys.to(dtype)
    trail = torch.empty(long // tile, *read.shape, dtype=dtype, device=read.device)
    d_own = torch.empty(*kept.shape, tile, tile, dtype=torch.float32, device=read.device)

    # of writes, carried on
    ended = carry_rows(write, right, left, kept, table, up=True, trail=trail)
    dended, dkeys, dfrom_start = removals_backward(
        dremoval.to(dtype).contiguous(), ended.to(dtype), right, from_start, table
    )
    del ended
    dwrite, dkeys_passed, dwrite_passed, dkept = carry_rows_backward(
        dended.add_(dwrite), right, left, kept, trail, table, up=True
    )
    dwrite.add_(dwrite_passed)
    dkeys.add_(dkeys_passed)

    # of queries, carried back
    carry_rows(read, left, right, kept, table, up=False, trail=trail)
    dread, dwrite_passed, dkeys_passed, dkept_read = carry_rows_backward(
        dread, left, right, kept, trail, table, up=False, dwithin=dwithin, d_own=d_own
    )
    return d_own, dread, dwrite.add_(dwrite_passed), dkeys.add_(dkeys_passed), dkept + dkept_read, dfrom_start


@compose_tiles_backward.register_fake
def _(
    dwithin, dread, dwrite, dremoval, read, write, keys, kept, from_start, sequence, number, cu, first_chunk, chunks, tile,
    long, dtype,
):  # fmt: skip
    return kept.new_empty(*kept.shape, tile, tile), *(x.new_empty(x.shape) for x in (read, write, keys, kept, kept))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *tensors, _, chunks, tile, long, dtype = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = chunks, tile, long, dtype


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *compose_tiles_backward(*gradients, *ctx.saved_tensors, *ctx.options), *(None,) * 9


compose_tiles.register_autograd(_backward, setup_context=_setup)
