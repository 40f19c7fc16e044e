"""What accelerators can do, from their makers' data sheets: dense rates, not sparse or boosted ones."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dla_data.counted import counted
from dla_train.config.load import LoadedRecipe
from dla_train.distributed.shares import check_groups
from dla_train.errors import UsageError
from dla_train.estimate.replicas import require_replicas

SAFE_SHARE = 0.92
"""Usable share of a device's memory; the rest is for CUDA's context, workspaces and fragmentation of the allocator."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        name: as on the command line. product: part of CUDA's name for it, in lower case.
        memory: bytes. bandwidth: of the memory, bytes per second.
        bf16: FLOP/s of dense bfloat16 products. fp32: FLOP/s of float32 products without TF32, PyTorch's default.
    """

    name: str
    product: str
    memory: float
    bandwidth: float
    bf16: float
    fp32: float

    def peak(self, precision: str) -> float:
        """FLOP/s at the recipe's precision."""
        return self.fp32 if precision == "32-true" else self.bf16


DEVICES = {
    device.name: device
    for device in (
        Device(name="b200", product="b200", memory=180e9, bandwidth=7.7e12, bf16=2250e12, fp32=75e12),
        Device(name="h200", product="h200", memory=141e9, bandwidth=4.8e12, bf16=989e12, fp32=67e12),
        Device(name="h100", product="h100 80gb hbm3", memory=80e9, bandwidth=3.35e12, bf16=989e12, fp32=67e12),
        Device(name="h100-pcie", product="h100 pcie", memory=80e9, bandwidth=2.0e12, bf16=756e12, fp32=51e12),
        Device(name="a100-80gb", product="a100", memory=80e9, bandwidth=2.0e12, bf16=312e12, fp32=19.5e12),
        Device(name="a100-40gb", product="a100", memory=40e9, bandwidth=1.55e12, bf16=312e12, fp32=19.5e12),
        Device(name="l40s", product="l40s", memory=48e9, bandwidth=0.864e12, bf16=362e12, fp32=91.6e12),
        Device(name="rtx-4090", product="rtx 4090", memory=24e9, bandwidth=1.01e12, bf16=165e12, fp32=82.6e12),
    )
}


def device_named(name: str) -> Device:
    """The device of that name, ignoring case.

    Raises:
        UsageError: it is not in the table; names the nearest.
    """
    if device := DEVICES.get(name.lower()):
        return device
    guess = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.4)
    hint = f" Did you mean {guess[0]}?" if guess else ""
    raise UsageError(f"--device is {name}, which is not in the table.{hint} It must be one of {', '.join(DEVICES)}.")


def devices_for(loaded: LoadedRecipe, devices: int | None) -> int:
    """How many devices train together: `devices`, or if None as many as the recipe's strategy names.

    Raises:
        UsageError: a step's windows cannot be divided evenly among them, or they among replicas or groups that share
            windows; names numbers that would work.
    """
    training, group = loaded.recipe.training, loaded.recipe.strategy.context_parallel
    if devices is None:
        devices = (loaded.recipe.strategy.devices or group) * (loaded.recipe.strategy.nodes or 1)
    check_groups(loaded, devices, counted(devices, "device"))
    pieces = training.global_batch // training.micro_batch
    if pieces * group % devices:
        fits = [str(number * group) for number in range(1, pieces + 1) if pieces % number == 0]
        shared = f", each of them computed by {group} devices" if group > 1 else ""
        listed = f"{', '.join(fits[:-1])} or {fits[-1]}" if len(fits) > 1 else fits[0]
        raise UsageError(
            f"training.global_batch is {training.global_batch} and training.micro_batch {training.micro_batch}: a step "
            f"is {pieces} micro-batch{'es' if pieces > 1 else ''}{shared}, which cannot be shared out evenly among "
            f"{counted(devices, 'device')}. Use --devices {listed}, or change one of the two."
        )
    require_replicas(loaded, devices)
    return devices
