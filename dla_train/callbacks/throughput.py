"""From the seconds of a step to tokens, FLOPs and the share of what the devices could do."""

from collections.abc import Callable

import torch

from dla_train.estimate.peak import peak_flops


class Throughput:
    """The speed columns of a step's row.

    FLOPs are those that the model needs (`dla_train.estimate.flops`), whatever the kernels do beyond, so `mfu` compares
    across kernels, batch sizes and recomputation. Where no table knows the device, as on a CPU, there is no `mfu`.

    Args:
        tokens_per_step: over all devices. flops_per_token: of training, forward and backward, by the step (from 0), as
            a curriculum changes the window. precision: of the recipe.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: Callable[[int], float], precision: str) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.precision = precision
        self._peak: float | None = None

    def start(self, device: torch.device, devices: int) -> None:
        """Training begins on `devices`, all like `device`."""
        peak = peak_flops(device, self.precision)
        self._peak = None if peak is None else peak * devices

    def of_step(self, step: int, seconds: float) -> dict[str, float]:
        """`tokens_per_second`, `flops_per_second` and, where it is known, `mfu`, all over all devices.

        Args:
            step: which one it was, from 0. seconds: that it took.
        """
        tokens_per_second = self.tokens_per_step / max(seconds, 1e-9)
        speed = {
            "tokens_per_second": tokens_per_second,
            "flops_per_second": tokens_per_second * self.flops_per_token(step),
        }
        if self._peak is not None:
            speed["mfu"] = speed["flops_per_second"] / self._peak
        return speed
