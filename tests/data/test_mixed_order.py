"""Windows of several sources: each source in its own order and epochs, all of them by their weights."""

import numpy as np
import pytest

from dla_data.errors import DataError
from dla_data.mixed_order import MixedOrder
from dla_data.order import WindowOrder


def test_a_single_source_has_its_own_order():
    assert (MixedOrder([13], [2.5], 7).windows(5, 60) == WindowOrder(13, 7).windows(5, 60)).all()


def test_every_source_is_gone_through_by_its_weight_and_epoch_by_epoch():
    order = MixedOrder([10, 4, 10], [0.5, 0.3, 0.2], seed=3)
    assert order.window_count == 24
    found = order.windows(0, 200)
    by_source = [found[found < 10], found[(found >= 10) & (found < 14)], found[found >= 14]]
    assert [len(own) for own in by_source] == [100, 60, 40]
    for own, size, begin in zip(by_source, (10, 4, 10), (0, 10, 14), strict=True):
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size] - begin) == list(range(size))
    assert (by_source[0][:40] != by_source[2] - 14).any(), "sources of one size are not gone through in step"
    assert [int((found[at : at + 10] < 10).sum()) for at in range(0, 200, 10)] == [5] * 20, "evenly, not in the mean"


def test_golden_values_hold_in_every_version():
    # A change here changes the training order of every run with several sources: none could be resumed any more.
    order = MixedOrder([7, 5], [2, 1], seed=3)
    assert order.windows(0, 18).tolist() == [0, 9, 2, 1, 11, 3, 5, 8, 6, 4, 10, 1, 6, 7, 2, 5, 7, 3]


@pytest.mark.parametrize("size", [1, 7, 32])
def test_the_order_is_the_same_in_any_pieces(size):
    order = MixedOrder([5, 9], [1, 1 / 3], seed=0)
    whole = order.windows(0, 300)
    pieces = [order.windows(at, min(size, 300 - at)) for at in range(0, 300, size)]
    assert (np.concatenate(pieces) == whole).all()
    assert order.windows(17, 0).size == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([5], [1, 1], 0), "1 source with 2 weights"),
        (([5, 0], [1, 1], 0), "an order of 0 windows"),
        (([5, 5], [1, 0], 0), "each above 0"),
        (([5], [1], -1), "seed -1 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(DataError, match=said):
        MixedOrder(*arguments)


def test_negative_indices_are_refused():
    with pytest.raises(DataError, match="neither can be negative"):
        MixedOrder([5], [1], 0).windows(-1, 2)
