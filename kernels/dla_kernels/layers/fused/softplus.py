"""A softplus whose backward needs its result alone: `y = log(1 + exp(x + shift))`, `dx = dy (1 - exp(-y))`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.operators import operator

NUMBERS = 1024
"""What a program computes."""


@operator("dla::shifted_softplus")
def softplus(x: Tensor, shift: float) -> Tensor:
    """y float32 in the shape of x."""
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    softplus_kernel[(-(-x.numel() // NUMBERS),)](x, y, shift, x.numel(), BN=NUMBERS, num_warps=4)
    return y


@softplus.register_fake
def _(x, shift):
    return x.new_empty(x.shape, dtype=torch.float32)


@operator("dla::shifted_softplus_backward", is_gradient=True)
def softplus_backward(dy: Tensor, y: Tensor, like: Tensor) -> Tensor:
    """dx in the shape of y and the type of the empty tensor `like`."""
    dy, y = dy.contiguous(), y.contiguous()
    dx = torch.empty(y.shape, dtype=like.dtype, device=y.device)
    softplus_backward_kernel[(-(-y.numel() // NUMBERS),)](dy, y, dx, y.numel(), BN=NUMBERS, num_warps=4)
    return dx


@softplus_backward.register_fake
def _(dy, y, like):
    return y.new_empty(y.shape, dtype=like.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[0].new_empty(0))


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return softplus_backward(dy, *ctx.saved_tensors), None


softplus.register_autograd(_backward, setup_context=_setup)


@triton.jit
def softplus_kernel(x_ptr, y_ptr, shift, numbers, BN: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    x = tl.load(x_ptr + i, mask=i < numbers, other=0.0).to(tl.float32) + shift
    # log(1 + e) is log1p(e) to float32's precision if what 1 + e has lost of e is added: log(u) e / (u - 1), u = 1 + e
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    tl.store(y_ptr + i, tl.maximum(x, 0.0) + log1p, mask=i < numbers)


@triton.jit
def softplus_backward_kernel(dy_ptr, y_ptr, dx_ptr, numbers, BN: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    dy = tl.load(dy_ptr + i, mask=i < numbers, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + i, mask=i < numbers, other=0.0)
    # 1 - exp(-y), which loses digits where y is small: there the series up to y^6, which is 5e-8 off at most
    series = y * (1.0 - y / 2.0 * (1.0 - y / 3.0 * (1.0 - y / 4.0 * (1.0 - y / 5.0 * (1.0 - y / 6.0)))))
    slope = tl.where(y < 0.25, series, 1.0 - tl.exp(-y))
    tl.store(dx_ptr + i, (dy * slope).to(dx_ptr.dtype.element_ty), mask=i < numbers)
