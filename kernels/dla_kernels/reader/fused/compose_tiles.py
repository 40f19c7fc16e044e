"""From what tiles do to a state to what their chunk does, for the delta rule: `dla::compose_tiles` and its backward.

Two passes of carried_rows.py: queries back to the chunk's start, writes on to its end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.reader.fused.carried_rows import Chunks, carry_rows, carry_rows_backward


@torch.library.custom_op("dla::compose_tiles", mutates_args=())
def compose_tiles(
    own: Tensor, read: Tensor, write: Tensor, keys: Tensor, kept: Tensor, sequence: Tensor, number: Tensor, cu: Tensor,
    tokens: int, tile: int, long: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Mx `[tokens, H, LONG]` in `dtype`, in which products run; Qe and U of the chunks `[H, chunks LONG, K]` float32.

    Of tiles, float32: own = Mx `[H, tiles, TILE, TILE]`, read = Qe, write = U, keys = K `[H, chunks LONG, K]`, kept
    `[H, tiles]`. sequence, number, cu: see `Chunks`.
    """
    chunks = Chunks(sequence=sequence, number=number, cu=cu, tile=tile, long=long)
    own, read, write, keys, kept = (x.contiguous() for x in (own, read, write, keys, kept))
    left, right = write.to(dtype), keys.to(dtype)
    within = torch.zeros(tokens, read.shape[0], long, dtype=dtype, device=read.device)
    read = carry_rows(read, left, right, kept, chunks, up=False, within=within, own=own)
    return within, read, carry_rows(write, right, left, kept, chunks, up=True)


@compose_tiles.register_fake
def _(own, read, write, keys, kept, sequence, number, cu, tokens, tile, long, dtype):
    within = read.new_empty(tokens, read.shape[0], long, dtype=dtype)
    return within, read.new_empty(read.shape), write.new_empty(write.shape)


@torch.library.custom_op("dla::compose_tiles_backward", mutates_args=())
def compose_tiles_backward(
    dwithin: Tensor, dread: Tensor, dwrite: Tensor, read: Tensor, write: Tensor, keys: Tensor, kept: Tensor,
    sequence: Tensor, number: Tensor, cu: Tensor, tile: int, long: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """d own, d read, d write, d keys and d kept, all float32."""
    chunks = Chunks(sequence=sequence, number=number, cu=cu, tile=tile, long=long)
    dwithin, dread, dwrite, read, write, keys, kept = (
        x.contiguous() for x in (dwithin, dread, dwrite, read, write, keys, kept)
    )
    left, right = write.to(dtype), keys.to(dtype)
    trail = torch.empty(long // tile, *read.shape, dtype=dtype, device=read.device)
    d_own = torch.empty(*kept.shape, tile, tile, dtype=torch.float32, device=read.device)
    carry_rows(read, left, right, kept, chunks, up=False, trail=trail)
    dread, dwrite_read, dkeys_read, dkept_read = carry_rows_backward(
        dread, left, right, kept, trail, chunks, up=False, dwithin=dwithin, d_own=d_own
    )
    carry_rows(write, right, left, kept, chunks, up=True, trail=trail)
    dwrite, dkeys, dwrite_later, dkept = carry_rows_backward(dwrite, right, left, kept, trail, chunks, up=True)
    return d_own, dread, dwrite.add_(dwrite_read).add_(dwrite_later), dkeys.add_(dkeys_read), dkept + dkept_read


@compose_tiles_backward.register_fake
def _(dwithin, dread, dwrite, read, write, keys, kept, sequence, number, cu, tile, long, dtype):
    return (
        kept.new_empty(*kept.shape, tile, tile), read.new_empty(read.shape), write.new_empty(write.shape),
        keys.new_empty(keys.shape), kept.new_empty(kept.shape),
    )  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, read, write, keys, kept, sequence, number, cu, _, *ctx.options = inputs
    ctx.save_for_backward(read, write, keys, kept, sequence, number, cu)


def _backward(ctx: Any, dwithin: Tensor, dread: Tensor, dwrite: Tensor) -> tuple[Tensor | None, ...]:
    return *compose_tiles_backward(dwithin, dread, dwrite, *ctx.saved_tensors, *ctx.options), *(None,) * 7


compose_tiles.register_autograd(_backward, setup_context=_setup)
