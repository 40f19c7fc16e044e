"""What a check finds, and how far off a result may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OP_ROUNDINGS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Allowed relative error of the op. A product in a type rounds each factor, and weights, decays and states are factors:
4 eps for 16-bit types. float32 results are sums of thousands of terms and differences of running sums."""
LAYER_ROUNDINGS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""The same for what a layer computes around the op: inputs are exact, and every result is rounded twice at most."""
RUNNING_SUMS = ("d log_decay",)
"""A sum of differences over up to all later tokens: one more rounding each time the number of terms doubles. The gate's
gradient is not among them, because it counts from what crosses into the next chunk (reader/fused/gates.py)."""
_ROW, _WORST_ROW, _WORST_NUMBER = 16, 4, 8
"""How many times as far off as the whole the worst part of a result may be: a row of at least 16 numbers, such as what
a head gives for a token, or fewer numbers. Rounding put the worst of 10^4 rows up to 5 times as far off, the worst of
as many numbers up to 12 times, where the whole came to a third of what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result, compared with the exact one.

    Attributes:
        what: its name, such as `d k`, the gradient with respect to k.
        error: how far off it is: a relative error, unless the name says otherwise.
        allowed: the largest error that rounding explains.
    """

    what: str
    error: float
    allowed: float

    @property
    def is_right(self) -> bool:
        """Whether rounding explains the error; nan is never right."""
        return self.error <= self.allowed


def relative_error(x: Tensor, exact: Tensor) -> float:
    """`||x - exact|| / ||exact||`, or `||x||` if the exact value is zero."""
    norm = exact.double().norm().item()
    return (x.double() - exact.double()).norm().item() / (norm if norm > 0 else 1.0)


def worst_error(x: Tensor, exact: Tensor, part: int) -> float:
    """The largest relative error of a part of `x`; nan if there is one.

    A mistake that only a few tokens feel is lost in the error of the whole. What is small in itself is the difference
    of large numbers, and so the error of a part that is smaller than most counts relative to those.

    Args:
        part: how many of the last dimensions a part has: 1 for rows, 0 for numbers.
    """
    x, exact = (y.double().reshape(*y.shape[: y.dim() - part], -1) for y in (x, exact))
    norms = exact.norm(dim=-1)
    usual = norms.square().mean().sqrt()
    return ((x - exact).norm(dim=-1) / torch.maximum(norms, usual if usual > 0 else usual + 1)).max().item()


def compared(
    what: str, x: Tensor, exact: Tensor, allowed: float, part: int, allowed_alone: float | None = None
) -> list[Finding]:
    """The result `what` as a whole, and the worst of its parts.

    Args:
        allowed: relative error of the whole. part: see `worst_error`. allowed_alone: that of the worst part is several
            times this; `allowed` if None.
    """
    factor = _WORST_ROW if part and x.shape[-1] >= _ROW else _WORST_NUMBER
    return [
        Finding(what=what, error=relative_error(x, exact), allowed=allowed),
        Finding(
            what=f"worst of {what}", error=worst_error(x, exact, part), allowed=factor * (allowed_alone or allowed)
        ),
    ]


def allowed_of_op(what: str, dtype: torch.dtype, tokens: int) -> float:
    """The relative error that the op's result `what` may have, computed in `dtype` from `tokens` tokens."""
    sums = tokens.bit_length() * torch.finfo(dtype).eps if what in RUNNING_SUMS else 0.0
    return OP_ROUNDINGS[dtype] + sums
