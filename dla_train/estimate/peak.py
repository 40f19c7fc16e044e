"""The highest rate of the device that a process trains on: what MFU is a share of."""

from __future__ import annotations

import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from dla_train.estimate.devices import DEVICES


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of dense products at a recipe's precision; None where no table has the device, as for every CPU.

    Our own table comes first for bfloat16: Lightning's does not know an H200 by its name, and takes an L40S for an L4.
    For float32 Lightning's looks at PyTorch's setting for the matrix units, too.
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
