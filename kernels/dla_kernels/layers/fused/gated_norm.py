"""The gated RMSNorm: one launch each way, each number read and written once.

With s = silu(gate), g = weight dy and r = 1 / sqrt(mean(u^2) + eps), all of one row:

    gate first:  u = x s,  y = weight u r      du = r (g - u r^2 mean(g u)),  dx = du s,  ds = du x,  dweight = dy u r
    norm first:  u = x,    y = weight u r s    as above with g s for g: dx = du,  ds = g u r,         dweight = dy u r s

A program has BR whole rows of the N channels of one group, so the backward can compute r again, and nothing but the
inputs is kept for it. It goes through many rows and adds up the weight's gradient, which torch then sums over programs
in a fixed order.
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
"""Programs of a backward launch, for each part of the channels: enough to fill a GPU a few times."""


@operator("dla::gated_rms_norm")
def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, gate_first: bool, groups: int) -> Tensor:
    """y in the shape of x, contiguous; arguments as in `gated_rms_norm`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    xs, gates, block = rows_of(x), rows_of(gate), block_of(weight.shape[0] // groups)
    rows = xs.shape[0] * xs.shape[1]
    gated_norm_kernel[(-(-rows // block["BR"]), groups)](
        xs, gates, weight.contiguous(), y, eps, rows, xs.shape[1], weight.shape[0],
        xs.stride(0), xs.stride(1), gates.stride(0), gates.stride(1), GATE_FIRST=gate_first, **block, num_warps=4,
    )  # fmt: skip
    return y


@gated_norm.register_fake
def _(x, gate, weight, eps, gate_first, groups):
    return x.new_empty(x.shape)


@operator("dla::gated_rms_norm_backward", is_gradient=True)
def gated_norm_backward(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float, gate_first: bool, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dgate and dweight, in the shapes of x, gate and weight."""
    dx, dgate = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for a in (x, gate))
    dys, xs, gates, block = rows_of(dy), rows_of(x), rows_of(gate), block_of(weight.shape[0] // groups)
    rows = xs.shape[0] * xs.shape[1]
    steps = -(-rows // (block["BR"] * PROGRAMS))
    programs = -(-rows // (block["BR"] * steps))
    sums = torch.empty(programs, weight.shape[0], dtype=torch.float32, device=x.device)
    gated_norm_backward_kernel[(programs, groups)](
        dys, xs, gates, weight.contiguous(), dx, dgate, sums, eps, rows, xs.shape[1], weight.shape[0], steps,
        dys.stride(0), dys.stride(1), xs.stride(0), xs.stride(1), gates.stride(0), gates.stride(1),
        GATE_FIRST=gate_first, **block, num_warps=4,
    )  # fmt: skip
    return dx, dgate, sums.sum(0).to(weight.dtype)


@gated_norm_backward.register_fake
def _(dy, x, gate, weight, eps, gate_first, groups):
    return x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gate, weight, *ctx.options = inputs
    ctx.save_for_backward(x, gate, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *gated_norm_backward(dy, *ctx.saved_tensors, *ctx.options), None, None, None


gated_norm.register_autograd(_backward, setup_context=_setup)


@triton.jit
def gated_norm_kernel(
    x_ptr, gate_ptr, weight_ptr, y_ptr, eps, rows, inner, channels, x_outer, x_inner, gate_outer, gate_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    is_channel = tl.arange(0, BN) < N
    channel = tl.program_id(1) * N + tl.arange(0, BN)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, is_channel)
    gate = load_rows(gate_ptr, row, rows, inner, gate_outer, gate_inner, channel, is_channel)
    weight = tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    opening = gate / (1.0 + tl.exp(-gate))
    u = x * opening if GATE_FIRST else x
    y = u * tl.rsqrt(tl.sum(u * u, 1) / N + eps)[:, None] * weight[None, :]
    if not GATE_FIRST:
        y *= opening
    store_rows(y_ptr, y, row, rows, channels, channel, is_channel)


@triton.jit
def gated_norm_backward_kernel(
    dy_ptr, x_ptr, gate_ptr, weight_ptr, dx_ptr, dgate_ptr, sums_ptr, eps, rows, inner, channels, steps,
    dy_outer, dy_inner, x_outer, x_inner, gate_outer, gate_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    is_channel = tl.arange(0, BN) < N
    channel = tl.program_id(1) * N + tl.arange(0, BN)
    weight = tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    dweight = tl.zeros((BR, BN), dtype=tl.float32)
    for step in range(0, steps):
        row = (program * steps + step) * BR + tl.arange(0, BR)
        dy = load_rows(dy_ptr, row, rows, inner, dy_outer, dy_inner, channel, is_channel)
        x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, is_channel)
        gate = load_rows(gate_ptr, row, rows, inner, gate_outer, gate_inner, channel, is_channel)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        opening = gate * sigmoid
        u = x * opening if GATE_FIRST else x
        r = tl.where(row < rows, tl.rsqrt(tl.sum(u * u, 1) / N + eps), 0.0)[:, None]  # no row: infinite with eps 0
        g = dy * weight[None, :]
        if GATE_FIRST:
            du = r * (g - u * (r * r * (tl.sum(g * u, 1) / N)[:, None]))
            dx = du * opening
            dopening = du * x
            dweight += dy * u * r
        else:
            dopening = g * x * r
            g *= opening
            dx = r * (g - x * (r * r * (tl.sum(g * x, 1) / N)[:, None]))
            dweight += dy * x * r * opening
        dgate = dopening * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        store_rows(dx_ptr, dx, row, rows, channels, channel, is_channel)
        store_rows(dgate_ptr, dgate, row, rows, channels, channel, is_channel)
    tl.store(sums_ptr + program * channels + channel, tl.sum(dweight, 0), mask=is_channel)
