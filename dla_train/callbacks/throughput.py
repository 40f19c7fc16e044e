"""Turns the seconds of a step into tokens and FLOPs per second and the share of the devices' peak."""

from collections.abc import Callable

import torch

from dla_train.estimate.peak import peak_flops


class Throughput:
    """The speed columns of a step's row.

    FLOPs are those that the model needs (`dla_train.estimate.flops`), without extra work of the kernels, so `mfu` can
    be compared across kernels, batch sizes and recomputation. There is no `mfu` for devices that no table has, such as
    CPUs.

    Args:
        tokens_per_step: over all devices. flops_per_token: of training, forward and backward, as a function of the step
            (from 0), because a curriculum changes the window. precision: of the recipe.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: Callable[[int], float], precision: str) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.precision = precision
        self._peak: float | None = None

    def start(self, device: torch.device, devices: int) -> None:
        """Note that training begins on `devices` devices, all like `device`."""
        peak = peak_flops(device, self.precision)
        self._peak = None if peak is None else peak * devices

    def of_step(self, step: int, seconds: float) -> dict[str, float]:
        """`tokens_per_second`, `flops_per_second` and, if the peak is known, `mfu`, each over all devices.

        Args:
            step: its number, from 0. seconds: how long it took.
        """
        tokens_per_second = self.tokens_per_step / max(seconds, 1e-9)
        speed = {
            "tokens_per_second": tokens_per_second,
            "flops_per_second": tokens_per_second * self.flops_per_token(step),
        }
        if self._peak is not None:
            speed["mfu"] = speed["flops_per_second"] / self._peak
        return speed
