"""Which numbers must not be rounded to 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged where it already has 32 bits or more.

    Decays, write strengths and slot weights are read by the op over thousands of steps; 16-bit rounding would add up.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
