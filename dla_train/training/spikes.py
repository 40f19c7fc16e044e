"""Tells a gradient that is far larger than those before it: a batch that would throw the weights off."""

MEMORY = 0.99
"""How much of the running mean each further step keeps: it looks back about a hundred steps."""
FIRST_STEPS = 100
"""Steps that are never called a spike: there is no mean to compare with yet."""


class SpikeWatch:
    """A running mean of gradient norms, and which of them exceed it too far.

    Args:
        factor: a norm above so many times the mean is a spike; None: none is.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self._sum = self._weight = 0.0
        self._steps = 0

    @property
    def mean(self) -> float:
        """Of the norms taken in; later ones weigh more."""
        return self._sum / self._weight

    def is_spike(self, norm: float) -> bool:
        """Whether a step of this norm should be skipped."""
        return self.factor is not None and self._steps >= FIRST_STEPS and norm > self.factor * self.mean

    def take_in(self, norm: float) -> None:
        """The norm of a step that was not skipped."""
        self._sum = MEMORY * self._sum + (1 - MEMORY) * norm
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        self._steps += 1

    def state(self) -> list[float]:
        """What goes into a checkpoint."""
        return [self._sum, self._weight, self._steps]

    def restore(self, state: list[float]) -> None:
        """The counterpart."""
        self._sum, self._weight = state[:2]
        self._steps = int(state[2])
