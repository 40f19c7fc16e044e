"""`short_convolution`: each channel looks at its own last few tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.autocast import without_autocast
from dla_kernels.layers.shifted_products import ShiftedProducts

Activation = Literal["silu"]


@without_autocast
def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    positions: Tensor | None = None,
    history: Tensor | None = None,
    backend: Literal["auto", "torch", "triton"] = "auto",
) -> Tensor:
    """Depthwise causal convolution over time: `y_t = f(bias + sum_i weight[:, W - 1 - i] x_{t - i})`, 0 <= i < W.

    Sums are taken in float32 (float64 for float64 inputs). Differentiable with respect to x, weight, bias and history.
    With `activation`, backend "triton" rounds to the type of x once, after it, and "torch" before it, too.

    Args:
        x: `[B, T, C]`; rows may lie apart, as in a slice of a wider projection.
        weight: `[C, W]`, as in `torch.nn.Conv1d`: the last of the W taps meets the newest token.
        bias: `[C]`, or None for zeros.
        activation: f; "silu" or None.
        positions: `[T]` int64, the position of each token in its document, where documents are packed into one row; a
            document sees zeros before its first token.
        history: `[B, W - 1, C]`, the inputs just before x; zeros if None.
        backend: "torch" (any device), "triton" (one launch, on a GPU), or "auto".
    Returns:
        y `[B, T, C]` in the type of x.
    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
    """
    _check(x, weight, bias, activation, positions, history)
    chosen = torch_or_triton(backend, "x", x)
    taps = weight.shape[1]
    if history is not None and (chosen == "torch" or torch.is_grad_enabled()):  # the operator has no gradient for it
        longer = torch.cat((history.to(x.dtype), x), 1)
        return short_convolution(longer, weight, bias, activation=activation, backend=chosen)[:, taps - 1 :]
    if chosen == "torch":
        y: Tensor = ShiftedProducts.apply(x, weight, bias, positions)  # type: ignore[assignment]
        return y if activation is None else F.silu(y)
    from dla_kernels.layers.fused.convolution import convolution  # imports triton, which only some platforms have

    return convolution(x, weight, bias, positions, history, activation == "silu")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    positions: Tensor | None,
    history: Tensor | None,
) -> None:
    if x.ndim != 3 or x.dtype not in FLOATS:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}; it must be [B, T, C] of floating point numbers"
        )
    batch, time, channels = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [{channels}, W], a row per channel of x")
    expected: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("bias", bias, (channels,)),
        ("positions", positions, (time,)),
        ("history", history, (batch, weight.shape[1] - 1, channels)),
    )
    for name, given, shape in expected:
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be {shape}")
    for name, given in (("weight", weight), ("bias", bias), ("positions", positions), ("history", history)):
        if given is not None and given.device != x.device:
            raise ValueError(f"{name} is on {given.device} and x on {x.device}; they must be on one device")
    if positions is not None and positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions has type {positions.dtype}; it must be int32 or int64")
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; it must be 'silu' or None")
    if positions is not None and history is not None:
        raise ValueError("positions and history were both given; packed documents begin with nothing before them")
