"""Numbers that the host computes for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x`, which is on the CPU, on `device`.

    An ordinary copy to a GPU makes the host wait until the GPU has done all that it was told before. One from pinned
    memory does not, and torch keeps that memory until it has been read.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
