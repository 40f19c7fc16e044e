"""FLOPs of forward and backward, which can be added."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs per token; a multiply-add counts as two.

    Attributes:
        forward, backward: of the two passes, without recomputation.
    """

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """FLOPs of both passes."""
        return self.forward + self.backward

    def __add__(self, other: Work) -> Work:
        return Work(forward=self.forward + other.forward, backward=self.backward + other.backward)

    def times(self, count: float) -> Work:
        """The work done `count` times."""
        return Work(forward=self.forward * count, backward=self.backward * count)


NONE = Work(forward=0, backward=0)


def product(forward: float, *, again: int = 0) -> Work:
    """A matrix product: one in the forward; in the backward one for the gradient of each factor, and `again` more."""
    return Work(forward=forward, backward=(2 + again) * forward)


def linear(inputs: int, outputs: int) -> Work:
    """Work of multiplying one token by a matrix."""
    return product(2 * inputs * outputs)
