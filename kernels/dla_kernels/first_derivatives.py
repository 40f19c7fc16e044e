"""Gradients that are written by hand have no derivatives themselves. Who asks for one gets an error.

`torch.autograd.function.once_differentiable` answers `torch.autograd.grad` with no derivative at all: the rest of a
gradient penalty would be taken for the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_second_derivative(ctx: Any, *grads: Any) -> Any:
    """A backward for gradients.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "second derivatives are not implemented: the gradients of dla_kernels are written by hand. Of the op, "
        "backend='reference' has them."
    )


def require_no_tangents() -> None:
    """Refuse to compute where derivatives are carried forward: torch's operators of our own would drop them.

    Raises:
        NotImplementedError: inside of `torch.func.jvp` or `torch.autograd.forward_ad.dual_level`.
    """
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "forward-mode derivatives are not implemented by dla_kernels. Of the op, backend='reference' has them."
        )


def first_derivative_only(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., Any]:
    """A `backward` of an autograd function that computes with plain tensors; its results refuse to be differentiated
    by what they depend on."""

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # it is with `create_graph`
            return found
        results = [one for one in found if one is not None]
        refusing = iter(_Refusing.apply(len(results), *results, *grads, *ctx.saved_tensors))
        return tuple(None if one is None else next(refusing) for one in found)

    return run


class _Refusing(torch.autograd.Function):
    """Hands on the first `count` tensors, which then depend on all."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors[:count]

    backward = staticmethod(refuse_second_derivative)
