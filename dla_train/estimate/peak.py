"""The peak rate of the device that a process trains on, to which MFU relates."""

from __future__ import annotations

import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from dla_train.estimate.devices import DEVICES


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of dense products at a recipe's precision; None if no table has the device, as for every CPU.

    For bfloat16 our own table comes first, because Lightning's does not know an H200 by its name, and takes an L40S for
    an L4. For float32 Lightning's is used, which also considers PyTorch's TF32 setting.
    """
    if device.type != "cuda":
        return None
    if precision != "32-true":
        name = torch.cuda.get_device_name(device).lower()
        for known in DEVICES.values():
            if known.product in name:
                return known.bf16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_available_flops(device, torch.float32 if precision == "32-true" else torch.bfloat16)
    return None if found is None else float(found)
