"""The recipe's `strategy` section: on how many devices, and how they share weights, gradients and optimizer states.

The number of processes may be left out everywhere: it is then that of the launcher (torchrun, srun), or one process
per GPU of this machine.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SingleStrategy:
    """One process, one device."""

    kind: Literal["single"] = "single"

    @property
    def devices(self) -> int:
        """Processes per node."""
        return 1

    @property
    def nodes(self) -> int:
        """Machines."""
        return 1


@dataclass(frozen=True, kw_only=True)
class DDPConfig:
    """Every process holds everything; gradients are averaged (PyTorch's DistributedDataParallel).

    Attributes:
        devices: processes per node, one device each; null takes what the launcher started, else every GPU here (or one
            process on the CPU).
        nodes: machines; null takes what the launcher started. More than one needs a launcher.
    """

    kind: Literal["ddp"] = "ddp"
    devices: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)


StrategyConfig = SingleStrategy | DDPConfig
"""What the recipe's `strategy` may be; further kinds join with `|`."""


def check_sizes(config: DDPConfig) -> None:
    """Refuse numbers of processes that cannot be.

    Raises:
        ValueError: names the field.
    """
    for name in ("devices", "nodes"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1, or null")
