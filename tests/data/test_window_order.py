"""The order of windows is a permutation in every epoch, reproducible everywhere, and looks random."""

import math
import tracemalloc

import numpy as np
import pytest

from dla_data.errors import DataError
from dla_data.order import WindowOrder


@pytest.mark.parametrize("windows", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 4096, 65537])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_is_a_permutation(windows: int, epoch: int) -> None:
    order = WindowOrder(windows, seed=17)
    np.testing.assert_array_equal(np.sort(order.windows(epoch * windows, windows)), np.arange(windows))


def test_golden_values_hold_on_every_platform() -> None:
    # A change here changes the training order of every run ever started: none could be resumed exactly any more.
    assert WindowOrder(1000, seed=0).windows(0, 8).tolist() == [92, 954, 802, 395, 897, 437, 38, 516]
    assert WindowOrder(1000, seed=1).windows(997, 6).tolist() == [668, 35, 838, 124, 228, 256]
    assert WindowOrder(65537, seed=2**64 - 1).windows(10**12, 5).tolist() == [40246, 34207, 56310, 5677, 63608]
    assert WindowOrder(5, seed=7).windows(0, 10).tolist() == [3, 2, 1, 4, 0, 2, 1, 3, 0, 4]


def test_one_window_is_the_same_as_many_whatever_the_start() -> None:
    order = WindowOrder(37, seed=3)
    whole = order.windows(0, 500)
    assert [order.window(index) for index in range(500)] == whole.tolist()
    for start, count in [(0, 1), (36, 2), (37, 37), (100, 399), (499, 1), (250, 0)]:
        np.testing.assert_array_equal(order.windows(start, count), whole[start : start + count])


def test_epochs_and_seeds_differ() -> None:
    orders = [WindowOrder(64, seed).windows(epoch * 64, 64).tolist() for seed in range(10) for epoch in range(10)]
    assert len({tuple(order) for order in orders}) == 100


@pytest.mark.parametrize("windows", [2, 3, 5, 8, 31, 100])
def test_windows_are_evenly_spread_over_positions_and_neighbors(windows: int) -> None:
    epochs = 20_000
    order = WindowOrder(windows, seed=11).windows(0, windows * epochs).reshape(epochs, windows)
    counts = np.stack([np.bincount(order[:, position], minlength=windows) for position in range(windows)])
    # (windows - 1)^2 degrees of freedom, because rows and columns both sum to `epochs`.
    assert_chi_square_usual(counts, epochs / windows, freedom=(windows - 1) ** 2)
    if windows > 2:
        # One pair of neighbors per epoch: several in one epoch are not independent.
        distance = (order[:, 1] - order[:, 0]) % windows
        counts = np.bincount(distance, minlength=windows)[1:]
        assert_chi_square_usual(counts, epochs / (windows - 1), freedom=windows - 2)


@pytest.mark.parametrize("windows", [3, 4, 5])
def test_every_permutation_of_few_windows_is_as_likely(windows: int) -> None:
    possible = math.factorial(windows)
    order = WindowOrder(windows, seed=2).windows(0, windows * possible * 500).reshape(-1, windows)
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == possible
    assert_chi_square_usual(counts, 500, freedom=possible - 1)


def assert_chi_square_usual(counts: np.ndarray, expected: float, freedom: int) -> None:
    excess = (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)
    assert abs(excess) < 4, f"chi-square is {excess:.1f} standard deviations from its mean"


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    tracemalloc.start()
    try:
        WindowOrder(10**12, seed=0).windows(10**13, 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize(
    ("windows", "seed", "words"),
    [(0, 0, "at least 1"), (-3, 0, "-3 windows"), (5, -1, "seed -1"), (5, 2**64, "0 to 2")],
)
def test_impossible_orders_are_refused(windows: int, seed: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        WindowOrder(windows, seed)


def test_negative_indices_are_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        WindowOrder(5, 0).windows(-1, 2)
