"""Mamba-2's two products by head: one launch each way, each number read and written once.

    scaled heads:  y = s x      dx = s dy,  ds = sum over the head's channels of dy x
    skip:          z = y + w x  dy = dz,    dx = w dz,  dw = sum over tokens and channels of dz x

Programs have BR rows, each the N channels of one token and head. Those of the skip's backward stay with one head, go
through many tokens and add up dw, which torch then sums over programs in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.layers.fused.rows import block_of, load_rows, rows_of, store_rows
from dla_kernels.operators import operator

PROGRAMS = 2048
"""Programs of a launch of the skip's backward: enough to fill a GPU a few times."""


@operator("dla::scaled_heads")
def scaled_heads(x: Tensor, scale: Tensor) -> Tensor:
    """y in the shape of x, contiguous; arguments as in `scale_heads`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, block = rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    scaled_heads_kernel[(-(-rows // block["BR"]),)](
        x, scale.contiguous(), y, rows, x.shape[1], x.stride(0), x.stride(1), **block, num_warps=4
    )
    return y


@scaled_heads.register_fake
def _(x, scale):
    return x.new_empty(x.shape)


@operator("dla::scaled_heads_backward", is_gradient=True)
def scaled_heads_backward(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dscale, in the shapes of x and scale."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dscale = torch.empty(scale.shape, dtype=scale.dtype, device=scale.device)
    dy, x, block = rows_of(dy), rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    scaled_heads_backward_kernel[(-(-rows // block["BR"]),)](
        dy, x, scale.contiguous(), dx, dscale, rows, x.shape[1], dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
        **block, num_warps=4,
    )  # fmt: skip
    return dx, dscale


@scaled_heads_backward.register_fake
def _(dy, x, scale):
    return x.new_empty(x.shape), scale.new_empty(scale.shape)


def _setup_scaled(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_scaled(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return scaled_heads_backward(dy, *ctx.saved_tensors)


scaled_heads.register_autograd(_backward_scaled, setup_context=_setup_scaled)


@operator("dla::skip")
def skip(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """z in the shape of x, contiguous; arguments as in `add_skip`."""
    z = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y, x, block = rows_of(y), rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    skip_kernel[(-(-rows // block["BR"]),)](
        y, x, weight.contiguous(), z, rows, x.shape[1], y.stride(0), y.stride(1), x.stride(0), x.stride(1),
        **block, num_warps=4,
    )  # fmt: skip
    return z


@skip.register_fake
def _(y, x, weight):
    return x.new_empty(x.shape)


@operator("dla::skip_backward", is_gradient=True)
def skip_backward(dz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dweight, in the shapes of x and weight."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dz, x, block = rows_of(dz), rows_of(x), block_of(x.shape[-1])
    tokens, heads = x.shape[:2]
    steps = -(-tokens // (block["BR"] * max(1, PROGRAMS // heads)))
    programs = -(-tokens // (block["BR"] * steps))
    sums = torch.empty(programs, heads, dtype=torch.float32, device=x.device)
    skip_backward_kernel[(programs, heads)](
        dz, x, weight.contiguous(), dx, sums, tokens * heads, heads, steps,
        dz.stride(0), dz.stride(1), x.stride(0), x.stride(1), **block, num_warps=4,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


@skip_backward.register_fake
def _(dz, x, weight):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_skip(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, weight = inputs
    ctx.save_for_backward(x, weight)


def _backward_skip(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dz, *skip_backward(dz, *ctx.saved_tensors)


skip.register_autograd(_backward_skip, setup_context=_setup_skip)


@triton.jit
def scaled_heads_kernel(
    x_ptr, scale_ptr, y_ptr, rows, inner, x_outer, x_inner, N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    store_rows(y_ptr, scale[:, None] * x, row, rows, N, channel, channel < N)


@triton.jit
def scaled_heads_backward_kernel(
    dy_ptr, x_ptr, scale_ptr, dx_ptr, dscale_ptr, rows, inner, dy_outer, dy_inner, x_outer, x_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    dy = load_rows(dy_ptr, row, rows, inner, dy_outer, dy_inner, channel, channel < N)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    store_rows(dx_ptr, scale[:, None] * dy, row, rows, N, channel, channel < N)
    tl.store(dscale_ptr + row, tl.sum(dy * x, 1).to(dscale_ptr.dtype.element_ty), mask=row < rows)


@triton.jit
def skip_kernel(
    y_ptr, x_ptr, weight_ptr, z_ptr, rows, inner, y_outer, y_inner, x_outer, x_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    y = load_rows(y_ptr, row, rows, inner, y_outer, y_inner, channel, channel < N)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    weight = tl.load(weight_ptr + row % inner, mask=row < rows, other=0.0).to(tl.float32)
    store_rows(z_ptr, y + weight[:, None] * x, row, rows, N, channel, channel < N)


@triton.jit
def skip_backward_kernel(
    dz_ptr, x_ptr, weight_ptr, dx_ptr, sums_ptr, rows, heads, steps, dz_outer, dz_inner, x_outer, x_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    program, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BN)
    weight = tl.load(weight_ptr + head).to(tl.float32)
    dweight = tl.zeros((BR, BN), dtype=tl.float32)
    for step in range(0, steps):
        row = ((program * steps + step) * BR + tl.arange(0, BR)) * heads + head
        dz = load_rows(dz_ptr, row, rows, heads, dz_outer, dz_inner, channel, channel < N)
        x = load_rows(x_ptr, row, rows, heads, x_outer, x_inner, channel, channel < N)
        store_rows(dx_ptr, weight * dz, row, rows, N, channel, channel < N)
        dweight += dz * x
    tl.store(sums_ptr + program * heads + head, tl.sum(tl.sum(dweight, 1), 0))
