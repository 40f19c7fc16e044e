"""The short convolution and its activation f.

    p_t = b + sum_i w_i x_{t-i},     y_t = f(p_t)
    dp_t = f'(p_t) dy_t,             dx_s = sum_i w_i dp_{s+i},      dw_i = sum_t dp_t x_{t-i}

The backward computes p again, so nothing but the inputs is kept for it. One launch makes dp and the sums over the
tokens of a tile, which torch adds up in a fixed order, and a second one makes dx. A program has a tile of BT tokens of
one sequence and BC channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.operators import operator

TOKENS, CHANNELS = 32, 64
"""Tile of one program."""


def _rows(x: Tensor) -> Tensor:
    """`x` `[B, T, C]` with channels side by side; rows may lie apart."""
    return x if x.stride(2) == 1 else x.contiguous()


@operator("dla::short_convolution")
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, history: Tensor | None, silu: bool
) -> Tensor:
    """y `[B, T, C]`, contiguous; arguments as in `short_convolution`. Not differentiable with a history."""
    batch, time, channels = x.shape
    x, weight = _rows(x), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tiles = -(-time // TOKENS)
    convolution_kernel[(batch * tiles, -(-channels // CHANNELS))](
        x, weight, weight if bias is None else bias.contiguous(), x if positions is None else positions.contiguous(),
        x if history is None else history.contiguous(), y, time, tiles, x.stride(0), x.stride(1),
        C=channels, W=weight.shape[1], BT=TOKENS, BC=CHANNELS, HAS_BIAS=bias is not None,
        HAS_POSITIONS=positions is not None, HAS_HISTORY=history is not None, SILU=silu, num_warps=4,
    )  # fmt: skip
    return y


@convolution.register_fake
def _(x, weight, bias, positions, history, silu):
    return x.new_empty(x.shape)


@operator("dla::short_convolution_backward", is_gradient=True)
def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx `[B, T, C]`, dweight `[C, W]` and dbias `[C]`; dbias is empty without a bias."""
    batch, time, channels = x.shape
    taps = weight.shape[1]
    x, dy, weight = _rows(x), _rows(dy), weight.contiguous()
    positions = None if positions is None else positions.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dp = torch.empty_like(dx) if silu else dy
    tiles = -(-time // TOKENS)
    grid = batch * tiles, -(-channels // CHANNELS)
    sums = torch.empty(batch * tiles, taps + 1, channels, dtype=torch.float32, device=x.device)
    convolution_taps_kernel[grid](
        dy, x, weight, weight if bias is None else bias.contiguous(), x if positions is None else positions,
        dp, sums, time, tiles, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
        C=channels, W=taps, BT=TOKENS, BC=CHANNELS, HAS_BIAS=bias is not None, HAS_POSITIONS=positions is not None,
        SILU=silu, num_warps=4,
    )  # fmt: skip
    convolution_inputs_kernel[grid](
        dp, weight, x if positions is None else positions, dx, time, tiles, dp.stride(0), dp.stride(1),
        C=channels, W=taps, BT=TOKENS, BC=CHANNELS, HAS_POSITIONS=positions is not None, num_warps=4,
    )  # fmt: skip
    total = sums.sum(0)
    dweight = total[:taps].flip(0).t().contiguous().to(weight.dtype)
    return dx, dweight, weight.new_empty(0) if bias is None else total[taps].clone().to(bias.dtype)


@convolution_backward.register_fake
def _(dy, x, weight, bias, positions, silu):
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(0) if bias is None else bias.new_empty(bias.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, positions, history, silu = inputs
    assert history is None
    ctx.save_for_backward(x, weight, bias, positions)
    ctx.silu = silu


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, positions = ctx.saved_tensors
    dx, dweight, dbias = convolution_backward(dy, x, weight, bias, positions, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None, None, None


convolution.register_autograd(_backward, setup_context=_setup)


@triton.jit
def load_earlier(
    x_ptr, t, lag, position, channel, time, stride, C: tl.constexpr, HAS_POSITIONS: tl.constexpr
):  # fmt: skip
    """x_{t - lag} as `[BT, BC]` float32; zero where there is none in the document. `position` are those of `t`."""
    s = t - lag
    inside = (s >= 0) & (t < time)
    if HAS_POSITIONS:
        inside = inside & (position >= lag)
    there = inside[:, None] & (channel < C)[None, :]
    return tl.load(x_ptr + s.to(tl.int64)[:, None] * stride + channel[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def load_tap(weight_ptr, lag, channel, C: tl.constexpr, W: tl.constexpr):
    """w_lag of these channels `[1, BC]` float32."""
    return tl.load(weight_ptr + channel * W + (W - 1 - lag), mask=channel < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_positions(positions_ptr, t, time, HAS_POSITIONS: tl.constexpr):
    """Positions of the tokens `t` in their documents; t itself where there are no documents."""
    return tl.load(positions_ptr + t, mask=t < time, other=0) if HAS_POSITIONS else t


@triton.jit
def before_activation(
    x_ptr, weight_ptr, bias_ptr, t, position, channel, time, stride,
    C: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
):  # fmt: skip
    """p `[BT, BC]` at the tokens `t` of the sequence at `x_ptr`, which nothing precedes."""
    p = tl.zeros((BT, BC), dtype=tl.float32)
    if HAS_BIAS:
        p += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    for lag in tl.static_range(W):
        x = load_earlier(x_ptr, t, lag, position, channel, time, stride, C, HAS_POSITIONS)
        p += x * load_tap(weight_ptr, lag, channel, C, W)
    return p


@triton.jit
def convolution_kernel(
    x_ptr, weight_ptr, bias_ptr, positions_ptr, history_ptr, y_ptr, time, tiles, batch_stride, stride,
    C: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HAS_HISTORY: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tiles).to(tl.int64)
    t = tl.program_id(0) % tiles * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    position = load_positions(positions_ptr, t, time, HAS_POSITIONS)
    y = before_activation(
        x_ptr + b * batch_stride, weight_ptr, bias_ptr, t, position, channel, time, stride,
        C, W, BT, BC, HAS_BIAS, HAS_POSITIONS,
    )  # fmt: skip
    if HAS_HISTORY:
        for lag in tl.static_range(1, W):
            s = W - 1 + t - lag  # among the W - 1 tokens before the first
            earlier = (t < lag)[:, None] & (channel < C)[None, :]
            x = tl.load(history_ptr + (b * (W - 1) + s)[:, None] * C + channel[None, :], mask=earlier, other=0.0)
            y += x.to(tl.float32) * load_tap(weight_ptr, lag, channel, C, W)
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    y_ptrs = y_ptr + (b * time + t)[:, None] * C + channel[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=(t < time)[:, None] & (channel < C)[None, :])


@triton.jit
def convolution_taps_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, positions_ptr, dp_ptr, sums_ptr, time, tiles, dy_batch_stride, dy_stride,
    x_batch_stride, x_stride, C: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_POSITIONS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """dp, and for the tokens of a tile the sums of `dp_t x_{t-i}` and of dp."""
    tile = tl.program_id(0).to(tl.int64)
    b = tile // tiles
    t = tl.program_id(0) % tiles * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    position = load_positions(positions_ptr, t, time, HAS_POSITIONS)
    x_ptr += b * x_batch_stride
    dp = load_earlier(dy_ptr + b * dy_batch_stride, t, 0, position, channel, time, dy_stride, C, False)
    if SILU:
        p = before_activation(
            x_ptr, weight_ptr, bias_ptr, t, position, channel, time, x_stride, C, W, BT, BC, HAS_BIAS, HAS_POSITIONS
        )
        sigmoid = 1.0 / (1.0 + tl.exp(-p))
        dp *= sigmoid * (1.0 + p * (1.0 - sigmoid))
        dp_ptrs = dp_ptr + (b * time + t)[:, None] * C + channel[None, :]
        tl.store(dp_ptrs, dp.to(dp_ptr.dtype.element_ty), mask=(t < time)[:, None] & (channel < C)[None, :])
    sums = sums_ptr + tile * (W + 1) * C + channel
    for lag in tl.static_range(W):
        x = load_earlier(x_ptr, t, lag, position, channel, time, x_stride, C, HAS_POSITIONS)
        tl.store(sums + lag * C, tl.sum(dp * x, 0), mask=channel < C)
    tl.store(sums + W * C, tl.sum(dp, 0), mask=channel < C)


@triton.jit
def convolution_inputs_kernel(
    dp_ptr, weight_ptr, positions_ptr, dx_ptr, time, tiles, batch_stride, stride,
    C: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, HAS_POSITIONS: tl.constexpr,
):  # fmt: skip
    """dx from dp."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    s = tl.program_id(0) % tiles * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    dx = tl.zeros((BT, BC), dtype=tl.float32)
    for lag in tl.static_range(W):
        t = s + lag
        inside = t < time
        if HAS_POSITIONS:
            inside = inside & (load_positions(positions_ptr, t, time, True) >= lag)
        there = inside[:, None] & (channel < C)[None, :]
        dp_ptrs = dp_ptr + b * batch_stride + t.to(tl.int64)[:, None] * stride + channel[None, :]
        dx += tl.load(dp_ptrs, mask=there, other=0.0).to(tl.float32) * load_tap(weight_ptr, lag, channel, C, W)
    dx_ptrs = dx_ptr + (b * time + s)[:, None] * C + channel[None, :]
    tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=(s < time)[:, None] & (channel < C)[None, :])
