"""What the kernels around the op must compute, interpreted, on a GPU or executed on the CPU: outputs and all gradients
against backend `torch` in float64, whose own tests are in test_layers.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dla_kernels import (
    add_skip,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)
from dla_kernels.self_check.finding import LAYER_ROUNDINGS, relative_error


class Drawn:
    """Random tensors on a device, always the same ones."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype).to(self.device)

    def part(self, *shape: int) -> Tensor:
        """Part of a wider tensor, as of a projection: rows of `shape[2:]` lie apart."""
        batch, time, *row = shape
        width = torch.Size(row).numel()
        return self.tensor(batch, time, width + 24)[..., 8 : 8 + width].unflatten(-1, row)


def compare(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor, allowed: float) -> None:
    """Check `function(*inputs, backend=...)` and its gradients; the inputs must not be leaves of a graph."""
    results = []
    for backend, dtype in (("torch", torch.float64), ("triton", None)):
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        y = function(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(dtype or dy.dtype))])
    assert results[1][0].dtype == inputs[0].dtype
    for i, (exact, found) in enumerate(zip(*results, strict=True)):
        assert found.shape == exact.shape
        assert relative_error(found, exact) < allowed, f"result {i}: {relative_error(found, exact):.1e}"


def check_convolution(
    device: str, dtype: torch.dtype, *, batch: int = 2, time: int, channels: int, width: int = 4, bias: bool = True,
    silu: bool = True, documents: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """`documents` are lengths that add up to `time`."""
    draw = Drawn(device, dtype)
    x, dy = draw.part(batch, time, channels), draw.tensor(batch, time, channels)
    draw.dtype = torch.float32
    parameters = [draw.tensor(channels, width), draw.tensor(channels)][: 1 + bias]
    positions = torch.cat([torch.arange(n) for n in documents]).to(device) if documents else None
    activation = "silu" if silu else None

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str) -> Tensor:
        return short_convolution(x, weight, bias, activation=activation, positions=positions, backend=backend)

    compare(function, [x, *parameters], dy, LAYER_ROUNDINGS[dtype])


def check_continued_convolution(device: str, dtype: torch.dtype, *, time: int, channels: int, width: int) -> None:
    """Without gradients, the inputs before the first token are read by the kernel; with them, they get theirs."""
    draw = Drawn(device, dtype)
    x, history = draw.part(2, time, channels), draw.tensor(2, width - 1, channels)
    draw.dtype = torch.float32
    weight = draw.tensor(channels, width)

    def function(x: Tensor, weight: Tensor, history: Tensor, *, backend: str) -> Tensor:
        return short_convolution(x, weight, activation="silu", history=history, backend=backend)

    exact = function(x.double(), weight.double(), history.double(), backend="torch")
    with torch.no_grad():
        found = function(x, weight, history, backend="triton")
    assert relative_error(found, exact) < LAYER_ROUNDINGS[dtype]
    compare(function, [x, weight, history], draw.tensor(2, time, channels).to(dtype), LAYER_ROUNDINGS[dtype])


def check_norm(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], *, gate_first: bool, groups: int = 1
) -> None:  # fmt: skip
    draw = Drawn(device, dtype)
    x, gate, dy = draw.tensor(*shape), draw.part(*shape), draw.tensor(*shape)
    draw.dtype = torch.float32
    weight = draw.tensor(shape[-1])

    def function(x: Tensor, gate: Tensor, weight: Tensor, *, backend: str) -> Tensor:
        return gated_rms_norm(x, gate, weight, 1e-5, gate_first=gate_first, groups=groups, backend=backend)

    compare(function, [x, gate, weight], dy, LAYER_ROUNDINGS[dtype])


def check_l2_norm(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    draw = Drawn(device, dtype)
    compare(l2_normalize, [draw.part(*shape)], draw.tensor(*shape), LAYER_ROUNDINGS[dtype])


def check_rms_norm(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    stream: torch.dtype,
    weights: torch.dtype = torch.float32,
) -> None:
    """From a residual stream in `stream` to products in `dtype`; each result is as exact as its own type lets it be."""
    draw = Drawn(device, stream)
    x = draw.part(*shape).requires_grad_()
    draw.dtype = weights
    weight = draw.tensor(shape[-1]).requires_grad_()
    draw.dtype = dtype
    dy = draw.part(*shape)
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    y = rms_norm(x, weight, 1e-5, dtype=dtype, backend="triton")
    exact = rms_norm(wide[0], wide[1], 1e-5, backend="torch")
    found = [y, *torch.autograd.grad(y, [x, weight], dy)]
    expected = [exact, *torch.autograd.grad(exact, wide, dy.double())]
    for name, kind, one, other in zip(("y", "dx", "dweight"), (dtype, stream, weights), found, expected, strict=True):
        assert (one.dtype, one.shape) == (kind, other.shape), name
        assert relative_error(one, other) < LAYER_ROUNDINGS[kind], f"{name}: {relative_error(one, other):.1e}"


def check_softplus(device: str, dtype: torch.dtype, *, numbers: int) -> None:
    """From -90, where almost nothing is left, to 40, where it is the number itself; each result is compared by itself,
    since they differ by orders of magnitude."""
    x = torch.linspace(-90, 40, numbers).to(dtype).to(device)
    leaves = [x.double().requires_grad_(), x.clone().requires_grad_()]
    exact, found = shifted_softplus(leaves[0], 0.5, backend="torch"), shifted_softplus(leaves[1], 0.5, backend="triton")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-44)
    slopes = [torch.autograd.grad(y.sum(), leaf)[0].double() for y, leaf in zip((exact, found), leaves, strict=True)]
    smallest = torch.finfo(dtype).tiny if dtype == torch.float16 else 1e-38
    torch.testing.assert_close(slopes[1], slopes[0], rtol=max(1e-5, torch.finfo(dtype).eps), atol=smallest)


def check_swiglu(device: str, dtype: torch.dtype, *, tokens: int, width: int) -> None:
    draw = Drawn(device, dtype)
    compare(swiglu, [draw.part(1, tokens, 2 * width)], draw.tensor(1, tokens, width), LAYER_ROUNDINGS[dtype])


def check_scaled_heads(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """`shape` is `[B, T, H, V]`; the factors are in float32, as in models."""
    draw = Drawn(device, dtype)
    x, y, dy = draw.part(*shape), draw.part(*shape), draw.tensor(*shape)
    draw.dtype = torch.float32
    compare(scale_heads, [x, draw.tensor(*shape[:-1])], dy, LAYER_ROUNDINGS[dtype])
    compare(add_skip, [y, x, draw.tensor(shape[-2])], dy, LAYER_ROUNDINGS[dtype])
