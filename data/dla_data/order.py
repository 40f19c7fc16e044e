"""Which window comes when: a random permutation per epoch that needs no memory and no state.

Position p of epoch e is sent through a Feistel network on the smallest power of two that holds all windows, again and
again until the result is a window (cycle walking: a bijection on the larger set, followed until it re-enters the
smaller one, is a bijection on that). Only integer arithmetic modulo 2^64 is used, so the order is the same on every
platform and in every version of numpy.
"""

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError
from dla_data.splitmix import GOLDEN, mix

# For orders of fewer than a hundred windows, whose halves have few bits, 8 rounds are visibly uneven (chi-square over
# 40,000 epochs) and 12 still slightly; 16 are not for any size tried. A million indices take a third of a second.
_ROUNDS = 16


class WindowOrder:
    """An endless sequence of window numbers: each epoch holds every window once, in an order of its own.

    The window at global index g is a function of (windows, seed, g) alone; its epoch is `g // windows`.

    Args:
        windows: how many windows there are, at least 1.
        seed: 0 <= seed < 2^64.

    Raises:
        DataError: an argument out of range.
    """

    def __init__(self, windows: int, seed: int) -> None:
        if windows < 1:
            raise DataError(f"an order of {windows} windows is impossible: there must be at least 1.")
        if not 0 <= seed < 1 << 64:
            raise DataError(f"seed {seed} is out of range: use 0 to 2^64 - 1.")
        self.window_count = windows
        self.seed = seed
        bits = (windows - 1).bit_length()
        self._low_bits = bits - bits // 2
        self._high_bits = bits // 2

    def __repr__(self) -> str:
        return f"WindowOrder(windows={self.window_count}, seed={self.seed})"

    def window(self, global_index: int) -> int:
        """Return the number of the window at `global_index`."""
        return int(self.windows(global_index, 1)[0])

    def windows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the windows at global indices `start` to `start + count` (exclusive), int64 [count]."""
        if start < 0 or count < 0:
            raise DataError(f"global indices from {start}, {count} of them, asked for: neither can be negative.")
        index = np.arange(start, start + count, dtype=np.int64)
        position = (index % self.window_count).astype(np.uint64)
        epoch = index // self.window_count
        first_epoch = start // self.window_count
        keys = self._round_keys(first_epoch, int(epoch[-1]) + 1 if count else first_epoch)
        row = epoch - first_epoch

        result = self._permute(position, keys, row)
        outside = np.flatnonzero(result >= self.window_count)
        while outside.size:
            result[outside] = self._permute(result[outside], keys, row[outside])
            outside = outside[result[outside] >= self.window_count]
        return result.astype(np.int64)

    def _round_keys(self, first_epoch: int, last_epoch: int) -> npt.NDArray[np.uint64]:
        """uint64 [rounds, epochs]: independent numbers for each."""
        seed = mix(np.array([self.seed], dtype=np.uint64))
        epochs = np.arange(first_epoch, last_epoch, dtype=np.uint64)
        rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None]
        return mix(mix(seed + epochs * GOLDEN) + rounds * GOLDEN)

    def _permute(
        self, value: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], row: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint64]:
        """Feistel network on `high_bits + low_bits` bits; the halves may differ in size, as each only ever masks the
        other.

        value: [count]; keys: [rounds, epochs]; row: [count], which epoch of `keys` each value belongs to.
        """
        low_bits = np.uint64(self._low_bits)
        low_mask = np.uint64((1 << self._low_bits) - 1)
        high_mask = np.uint64((1 << self._high_bits) - 1)
        low, high = value & low_mask, value >> low_bits
        for step, epoch_key in enumerate(keys):
            key = epoch_key if epoch_key.size == 1 else epoch_key[row]  # one epoch: broadcast, no copies
            if step % 2 == 0:
                low = low ^ (mix(high + key) & low_mask)
            else:
                high = high ^ (mix(low + key) & high_mask)
        return (high << low_bits) | low
