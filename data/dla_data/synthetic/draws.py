"""Random numbers as functions of (seed, purpose, index): no generator object, so no order in which to ask.

Every example has a stream of its own for each purpose ("mqar keys"). Number c of a stream is the same however many are
asked for and whatever other examples are asked for with it.
"""

import zlib

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError
from dla_data.splitmix import GOLDEN, mix


def stream_keys(seed: int, purpose: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """uint64 `[N]`: the starting values of the streams of examples `indices` `[N]`.

    Raises:
        DataError: seed outside 0 to 2^64 - 1, or a negative index.
    """
    if not 0 <= seed < 1 << 64:
        raise DataError(f"seed {seed} is out of range: use 0 to 2^64 - 1.")
    if indices.size and int(indices.min()) < 0:
        raise DataError(f"example {int(indices.min())} asked for: they are counted from 0.")
    names = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    base = mix(mix(names[:1]) + names[1:] * GOLDEN)
    return mix(base + mix(indices.astype(np.uint64) * GOLDEN + GOLDEN))


def bits(seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint64]:
    """uint64 `[N, count]`, all 64 bits random (splitmix64 from the stream's key)."""
    counter = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return mix(stream_keys(seed, purpose, indices)[:, None] + counter)


def uniform(seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """float64 `[N, count]` in [0, 1), multiples of 2^-53."""
    return (bits(seed, purpose, indices, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int, below: int) -> npt.NDArray[np.int64]:
    """int64 `[N, count]` in 0 to `below - 1`, independent of each other."""
    return (uniform(seed, purpose, indices, count) * below).astype(np.int64)


def permutation(seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """int64 `[N, count]`: 0 to `count - 1` in a random order of each row's own."""
    return np.argsort(uniform(seed, purpose, indices, count), axis=1, kind="stable")


def distinct(seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int, below: int) -> npt.NDArray[np.int64]:
    """int64 `[N, count]` in 0 to `below - 1`, no two of a row equal, in random order (Floyd's sampling, shuffled).

    Raises:
        DataError: there are fewer than `count`.
    """
    if count > below:
        raise DataError(f"{count} different numbers out of {below} asked for: there are not so many.")
    draws = uniform(seed, f"{purpose}, which", indices, count)
    chosen = np.empty((len(indices), count), dtype=np.int64)
    for place in range(count):
        top = below - count + place
        drawn = (draws[:, place] * (top + 1)).astype(np.int64)
        taken = (chosen[:, :place] == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(taken, top, drawn)
    order = permutation(seed, f"{purpose}, order", indices, count)
    return np.take_along_axis(chosen, order, axis=1)


def weighted(
    seed: int, purpose: str, indices: npt.NDArray[np.int64], count: int, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """int64 `[N, count]`: indices into `weights`, drawn one after the other without replacement, in order of drawing.

    Each draw takes an index with probability proportional to its weight among those left. All draws are made at once:
    an index of weight w gets an exponential waiting time of rate w, and the `count` that come first are taken.
    """
    waiting = -np.log1p(-uniform(seed, purpose, indices, len(weights))) / weights
    return np.argsort(waiting, axis=1, kind="stable")[:, :count]
