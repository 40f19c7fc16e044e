"""The gated activation. A program has a tile of BR rows and BN of the N channels of y."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.operators import operator

ROWS, CHANNELS = 8, 256
"""Tile of one program."""


def _launch(y: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid for y `[..., N]`, and the options that both kernels have."""
    width = y.shape[-1]
    grid = -(-y.numel() // (width * ROWS)), -(-width // CHANNELS)
    return grid, {"N": width, "BR": ROWS, "BN": CHANNELS, "num_warps": 4}


@operator("dla::swiglu")
def gated_halves(x: Tensor) -> Tensor:
    """y `[..., N]`, contiguous, for x `[..., 2 N]`."""
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    grid, options = _launch(y)
    swiglu_kernel[grid](x, y, y.numel() // y.shape[-1], **options)
    return y


@gated_halves.register_fake
def _(x):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@operator("dla::swiglu_backward", is_gradient=True)
def gated_halves_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dx `[..., 2 N]`."""
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    grid, options = _launch(dy)
    swiglu_backward_kernel[grid](dy, x, dx, dy.numel() // dy.shape[-1], **options)
    return dx


@gated_halves_backward.register_fake
def _(dy, x):
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> Tensor:
    return gated_halves_backward(dy, *ctx.saved_tensors)


gated_halves.register_autograd(_backward, setup_context=_setup)


@triton.jit
def tile_of(rows, N: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr):
    """The tile's rows `[BR, 1]` (64 bits) and channels `[1, BN]`, and which of both are there."""
    row = (tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR))[:, None]
    channel = (tl.program_id(1) * BN + tl.arange(0, BN))[None, :]
    return row, channel, (row < rows) & (channel < N)


@triton.jit
def swiglu_kernel(x_ptr, y_ptr, rows, N: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr):
    row, channel, there = tile_of(rows, N, BR, BN)
    a_ptrs = x_ptr + row * (2 * N) + channel
    a = tl.load(a_ptrs, mask=there, other=0.0).to(tl.float32)
    b = tl.load(a_ptrs + N, mask=there, other=0.0).to(tl.float32)
    y = a / (1.0 + tl.exp(-a)) * b
    tl.store(y_ptr + row * N + channel, y.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def swiglu_backward_kernel(dy_ptr, x_ptr, dx_ptr, rows, N: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr):
    row, channel, there = tile_of(rows, N, BR, BN)
    a_ptrs = x_ptr + row * (2 * N) + channel
    a = tl.load(a_ptrs, mask=there, other=0.0).to(tl.float32)
    b = tl.load(a_ptrs + N, mask=there, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * N + channel, mask=there, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-a))
    da = dy * b * sigmoid * (1.0 + a * (1.0 - sigmoid))
    db = dy * a * sigmoid
    da_ptrs = dx_ptr + row * (2 * N) + channel
    tl.store(da_ptrs, da.to(dx_ptr.dtype.element_ty), mask=there)
    tl.store(da_ptrs + N, db.to(dx_ptr.dtype.element_ty), mask=there)
