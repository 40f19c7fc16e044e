"""RMSNorm: one launch each way, each number read and written once, in its own type.

With g = weight dy and r = 1 / sqrt(mean(x^2) + eps), all of one row:

    y = weight x r        dx = r (g - x r^2 mean(g x)),  dweight = dy x r

A program has BR whole rows of N channels, so the backward can compute r again, and only the inputs are kept for it. It
goes through many rows and adds up the weight's gradient, which torch then sums over programs in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.layers.fused.rows import block_of, load_rows, rows_of, store_rows
from dla_kernels.operators import operator

PROGRAMS = 1024
"""Programs of a backward launch: enough to fill a GPU a few times."""


@operator("dla::rms_norm")
def normed_rows(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y of type `dtype` in the shape of x, contiguous; arguments as in `rms_norm`."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    x, block = rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    rms_norm_kernel[(-(-rows // block["BR"]),)](
        x, weight.contiguous(), y, eps, rows, x.shape[1], x.stride(0), x.stride(1), **block, num_warps=4
    )
    return y


@normed_rows.register_fake
def _(x, weight, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@operator("dla::rms_norm_backward", is_gradient=True)
def normed_rows_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dx and dweight, in the shapes and types of x and weight."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dy, x, block = rows_of(dy), rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    steps = -(-rows // (block["BR"] * PROGRAMS))
    programs = -(-rows // (block["BR"] * steps))
    sums = torch.empty(programs, weight.shape[0], dtype=torch.float32, device=x.device)
    rms_norm_backward_kernel[(programs,)](
        dy, x, weight.contiguous(), dx, sums, eps, rows, x.shape[1], steps,
        dy.stride(0), dy.stride(1), x.stride(0), x.stride(1), **block, num_warps=4,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


@normed_rows_backward.register_fake
def _(dy, x, weight, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *normed_rows_backward(dy, *ctx.saved_tensors, ctx.eps), None, None


normed_rows.register_autograd(_backward, setup_context=_setup)


@triton.jit
def rms_norm_kernel(
    x_ptr, weight_ptr, y_ptr, eps, rows, inner, x_outer, x_inner, N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    weight = tl.load(weight_ptr + channel, mask=channel < N, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / N + eps)[:, None] * weight[None, :]
    store_rows(y_ptr, y, row, rows, N, channel, channel < N)


@triton.jit
def rms_norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, dx_ptr, sums_ptr, eps, rows, inner, steps, dy_outer, dy_inner, x_outer, x_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BN)
    weight = tl.load(weight_ptr + channel, mask=channel < N, other=0.0).to(tl.float32)
    dweight = tl.zeros((BR, BN), dtype=tl.float32)
    for step in range(0, steps):
        row = (program * steps + step) * BR + tl.arange(0, BR)
        dy = load_rows(dy_ptr, row, rows, inner, dy_outer, dy_inner, channel, channel < N)
        x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
        r = tl.where(row < rows, tl.rsqrt(tl.sum(x * x, 1) / N + eps), 0.0)[:, None]  # no row: infinite with eps 0
        g = dy * weight[None, :]
        dx = r * (g - x * (r * r * (tl.sum(g * x, 1) / N)[:, None]))
        dweight += dy * x * r
        store_rows(dx_ptr, dx, row, rows, N, channel, channel < N)
    tl.store(sums_ptr + program * N + channel, tl.sum(dweight, 0), mask=channel < N)
