"""Which window of which source comes when: a function of the index alone, like the order of a single source.

The cycle of `Mixture` says which source the window at global index g comes from, and how many windows of that source
came before it. That number is its place in the source's own endless `WindowOrder`: each source has its own epochs and
begins the next one when it has been read through, independently of the others.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.mixture import Mixture
from dla_data.order import WindowOrder
from dla_data.splitmix import GOLDEN


class MixedOrder:
    """An endless sequence of window numbers over several sources; the numbers of the second source begin where those of
    the first end, and so on.

    Args:
        windows: how many each source has, at least 1. weights: their shares; only proportions matter.
        seed: 0 <= seed < 2^64. The first source has the order of `WindowOrder(windows, seed)`.
    Attributes:
        window_count: of all sources together. mixture: which source comes when.

    Raises:
        DataError: an argument out of range.
    """

    def __init__(self, windows: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(windows) != len(weights):
            raise DataError(
                f"{counted(len(windows), 'source')} with {counted(len(weights), 'weight')}: each needs one."
            )
        if not 0 <= seed < 1 << 64:
            raise DataError(f"seed {seed} is out of range: use 0 to 2^64 - 1.")
        self.mixture = Mixture(weights, streams=1)
        # Different seeds, or sources of equal size would be read in the same order.
        seeds = [(seed + number * int(GOLDEN)) % (1 << 64) for number in range(len(windows))]
        self._orders = [WindowOrder(count, own) for count, own in zip(windows, seeds, strict=True)]
        self._begins = np.cumsum([0, *windows[:-1]])
        self.window_count = sum(windows)

    def windows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the windows at global indices `start` to `start + count` (exclusive), int64 [count]."""
        if start < 0 or count < 0:
            raise DataError(f"global indices from {start}, {count} of them, asked for: neither can be negative.")
        sources = self.mixture.sources(start, count)
        before = self.mixture.counts(start).tolist()
        found = np.empty(count, dtype=np.int64)
        for number, order in enumerate(self._orders):
            is_own = sources == number
            found[is_own] = self._begins[number] + order.windows(before[number], int(is_own.sum()))
        return found
