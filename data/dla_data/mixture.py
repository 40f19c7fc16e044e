"""Which source each window of a mixture comes from: a function of its index, from integers alone.

The weights become whole shares n_k of a cycle of B windows. The cycle is a smooth weighted round robin: at each place,
every source's credit grows by its share, and the source with the most credit is taken and pays B. So every stretch of
windows, not only the average, holds each source about as often as its weight says.

With S streams, window g has row g // S and column g % S and takes place (row * a + column) % B of the cycle, where a is
the smallest number >= S that has no common divisor with B. Along a row (the windows of a step) the places of the cycle
follow each other; down a column (one stream) every place comes exactly once in B rows. Each stream therefore sees all
sources by their weights.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError

LONGEST_CYCLE = 10_000
"""Weights that need a longer cycle are rounded to this many shares."""


class Mixture:
    """A mixture of windows of equal length, so that shares of windows are shares of tokens.

    Args:
        weights: of the sources; only their proportions matter.
        streams: how many streams read the windows in turn.

    Raises:
        DataError: no weights, one that is not above 0, or one too small beside the others.
    """

    def __init__(self, weights: Sequence[float], streams: int) -> None:
        if streams < 1:
            raise DataError(f"{streams} streams asked for: there must be at least 1.")
        self.streams = streams
        self.shares = _whole_shares(weights)
        self.cycle = sum(self.shares)
        self._places = _smooth_cycle(self.shares)
        self._stride = next(
            number for number in range(streams, streams + self.cycle + 1) if gcd(number, self.cycle) == 1
        )
        chosen = self._places[:, None] == np.arange(len(self.shares))
        self._before = np.concatenate([np.zeros((1, len(self.shares)), np.int64), np.cumsum(chosen, axis=0)])
        starts = np.arange(self.cycle, dtype=np.int64) * self._stride
        rows = self._along_cycle(starts + streams) - self._along_cycle(starts)
        self._rows_before = np.concatenate([np.zeros((1, len(self.shares)), np.int64), np.cumsum(rows, axis=0)])

    def source(self, window: int) -> int:
        """The source of the window with this index over the whole run."""
        return int(self.sources(window, 1)[0])

    def sources(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The sources of the windows `start` to `start + count` (exclusive), int64 [count]."""
        row, column = np.divmod(np.arange(start, start + count, dtype=np.int64), self.streams)
        return self._places[(row * self._stride + column) % self.cycle]

    def counts(self, windows: int) -> npt.NDArray[np.int64]:
        """How many of the first `windows` windows come from each source, int64 [sources]."""
        row, column = divmod(windows, self.streams)
        turns, rest = divmod(row, self.cycle)
        start = np.array([row * self._stride])
        begun = (self._along_cycle(start + column) - self._along_cycle(start))[0]
        return turns * self.streams * np.array(self.shares) + self._rows_before[rest] + begun

    def _along_cycle(self, length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Windows of each source among the first `length` [n] places of the endless cycle, int64 [n, sources]."""
        turns, rest = np.divmod(length, self.cycle)
        return turns[:, None] * np.array(self.shares) + self._before[rest]


def _whole_shares(weights: Sequence[float]) -> list[int]:
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise DataError(f"the weights are {list(weights)}: there must be at least one, and each above 0.")
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    cycle = lcm(*(share.denominator for share in shares))
    if cycle <= LONGEST_CYCLE:
        return [int(share * cycle) for share in shares]
    whole = [int(share * LONGEST_CYCLE) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda index: (whole[index] - shares[index] * LONGEST_CYCLE, index))
    for index in by_rest[: LONGEST_CYCLE - sum(whole)]:
        whole[index] += 1
    if 0 in whole:
        small = weights[whole.index(0)]
        raise DataError(
            f"the weight {small} is below 1/{LONGEST_CYCLE} of all the weights, so its source would not be read. "
            "Raise it, or leave the source out."
        )
    common = gcd(*whole)
    return [share // common for share in whole]


def _smooth_cycle(shares: list[int]) -> npt.NDArray[np.int64]:
    places = np.empty(sum(shares), dtype=np.int64)
    credit = [0] * len(shares)
    for place in range(places.size):
        credit = [have + share for have, share in zip(credit, shares, strict=True)]
        places[place] = taken = credit.index(max(credit))
        credit[taken] -= places.size
    return places
