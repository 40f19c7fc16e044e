"""Detects a gradient that is far larger than those before it, from a batch that would disturb the weights."""

MEMORY = 0.99
"""The fraction of the running mean that each further step keeps: it averages about a hundred steps."""
FIRST_STEPS = 100
"""The first steps never count as spikes, because there is no mean to compare them with yet."""


class SpikeWatch:
    """A running mean of gradient norms, which tells the norms that are far above it.

    Args:
        factor: a norm above this many times the mean is a spike; None: no norm is.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self._sum = self._weight = 0.0
        self._steps = 0

    @property
    def mean(self) -> float:
        """The mean of the norms taken in; later ones weigh more."""
        return self._sum / self._weight

    def is_spike(self, norm: float) -> bool:
        """Whether a step of this norm should be skipped."""
        return self.factor is not None and self._steps >= FIRST_STEPS and norm > self.factor * self.mean

    def take_in(self, norm: float) -> None:
        """Add the norm of a step that was not skipped."""
        self._sum = MEMORY * self._sum + (1 - MEMORY) * norm
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        self._steps += 1

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self._sum, self._weight, self._steps]

    def restore(self, state: list[float]) -> None:
        """Restore what `state` returned."""
        self._sum, self._weight = state[:2]
        self._steps = int(state[2])
