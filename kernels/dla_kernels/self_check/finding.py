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


def allowed_of_op(what: str, dtype: torch.dtype, tokens: int) -> float:
    """The relative error that the op's result `what` may have, computed in `dtype` from `tokens` tokens."""
    sums = tokens.bit_length() * torch.finfo(dtype).eps if what in RUNNING_SUMS else 0.0
    return OP_ROUNDINGS[dtype] + sums
