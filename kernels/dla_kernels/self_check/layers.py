"""Checks what a layer computes around the op: outputs and all gradients, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dla_kernels.layers import (
    add_skip,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)
from dla_kernels.self_check.finding import LAYER_ROUNDINGS, Finding, compared

LayerBackend = Literal["auto", "torch", "triton"]

_TOKENS = 300


class _Drawn:
    """Random inputs, the same on every device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, weights: torch.dtype = torch.float32) -> None:
        self._device, self._dtype, self._weights = device, dtype, weights
        self._generator = torch.Generator().manual_seed(0)

    def activation(self, *row: int) -> Tensor:
        """`[1, T, *row]` in the type of activations."""
        return self.wide(1, _TOKENS, *row).to(self._dtype)

    def parameter(self, *shape: int) -> Tensor:
        """`shape` in the type of parameters."""
        return self.wide(*shape).to(self._weights)

    def wide(self, *shape: int) -> Tensor:
        """`shape` in float32."""
        return torch.randn(shape, generator=self._generator).to(self._device)


def check_convolution(
    device: torch.device,
    dtype: torch.dtype,
    *,
    channels: int,
    width: int,
    bias: bool,
    weights: torch.dtype = torch.float32,
    backend: LayerBackend = "auto",
) -> list[Finding]:
    """Check `short_convolution` with SiLU: `channels` channels, `width` taps. `weights`: type of the parameters."""
    draw = _Drawn(device, dtype, weights)
    inputs = {"x": draw.activation(channels), "weight": draw.parameter(channels, width)}
    if bias:
        inputs["bias"] = draw.parameter(channels)

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: LayerBackend) -> Tensor:
        return short_convolution(x, weight, bias, activation="silu", backend=backend)

    return _compare(function, inputs, backend)


def check_gated_norm(
    device: torch.device,
    dtype: torch.dtype,
    *,
    row: tuple[int, ...],
    gate_first: bool,
    groups: int = 1,
    weights: torch.dtype = torch.float32,
    backend: LayerBackend = "auto",
) -> list[Finding]:
    """Check `gated_rms_norm` on rows `[1, T, *row]`. `weights`: type of the weight; the other arguments are its own."""
    draw = _Drawn(device, dtype, weights)
    inputs = {"x": draw.activation(*row), "gate": draw.activation(*row), "weight": draw.parameter(row[-1])}

    def function(x: Tensor, gate: Tensor, weight: Tensor, *, backend: LayerBackend) -> Tensor:
        return gated_rms_norm(x, gate, weight, 1e-5, gate_first=gate_first, groups=groups, backend=backend)

    return _compare(function, inputs, backend)


def check_l2_norm(
    device: torch.device, dtype: torch.dtype, *, heads: int, key_dim: int, backend: LayerBackend = "auto"
) -> list[Finding]:
    """Check `l2_normalize` on queries or keys `[1, T, H, K]`."""
    return _compare(l2_normalize, {"x": _Drawn(device, dtype).activation(heads, key_dim)}, backend)


def check_rms_norm(
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: int,
    stream: torch.dtype = torch.float32,
    weights: torch.dtype = torch.float32,
    backend: LayerBackend = "auto",
) -> list[Finding]:
    """Check `rms_norm` of `[1, T, width]` with a result in `dtype`. `stream`: type of x. `weights`: of the weight."""
    draw = _Drawn(device, stream, weights)

    def function(x: Tensor, weight: Tensor, *, backend: LayerBackend) -> Tensor:
        return rms_norm(x, weight, 1e-5, dtype=x.dtype if x.dtype == torch.float64 else dtype, backend=backend)

    return _compare(function, {"x": draw.activation(width), "weight": draw.parameter(width)}, backend, dtype)


def check_scaled_heads(
    device: torch.device, dtype: torch.dtype, *, heads: int, value_dim: int, backend: LayerBackend = "auto"
) -> list[Finding]:
    """Check `scale_heads` on values `[1, T, H, V]`."""
    draw = _Drawn(device, dtype)
    inputs = {"x": draw.activation(heads, value_dim), "scale": draw.wide(1, _TOKENS, heads)}
    return _compare(scale_heads, inputs, backend)


def check_skip(
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    value_dim: int,
    weights: torch.dtype = torch.float32,
    backend: LayerBackend = "auto",
) -> list[Finding]:
    """Check `add_skip` on values `[1, T, H, V]`. `weights`: type of the weight."""
    draw = _Drawn(device, dtype, weights)
    y, x = (draw.activation(heads, value_dim) for _ in range(2))
    return _compare(add_skip, {"y": y, "x": x, "weight": draw.parameter(heads)}, backend)


def check_softplus(
    device: torch.device, dtype: torch.dtype, *, slots: int, backend: LayerBackend = "auto"
) -> list[Finding]:
    """Check `shifted_softplus` on `slots` slot weights per token."""

    def function(x: Tensor, *, backend: LayerBackend) -> Tensor:
        return shifted_softplus(x, 0.5, backend=backend)

    return _compare(function, {"x": _Drawn(device, dtype).activation(slots)}, backend)


def check_swiglu(
    device: torch.device, dtype: torch.dtype, *, width: int, backend: LayerBackend = "auto"
) -> list[Finding]:
    """Check `swiglu` of `2 * width` channels."""
    return _compare(swiglu, {"x": _Drawn(device, dtype).activation(2 * width)}, backend)


def _compare(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], backend: LayerBackend, dtype: torch.dtype | None = None
) -> list[Finding]:
    """`dtype`: the type that results and their gradient are rounded to, that of x if None."""
    dtype = dtype or inputs["x"].dtype
    results = []
    for chosen, wide in (("torch", torch.float64), (backend, None)):
        leaves = {name: x.detach().to(wide or x.dtype).requires_grad_() for name, x in inputs.items()}
        y = function(**leaves, backend=chosen)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y))
        results.append({"output": y} | {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)})
    exact, found = results
    allowed = LAYER_ROUNDINGS[dtype]
    return [
        finding for name, x in found.items() for finding in compared(name, x, exact[name], allowed, int(x.dim() > 1))
    ]
