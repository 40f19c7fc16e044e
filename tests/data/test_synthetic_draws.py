import numpy as np
import pytest

from dla_data.errors import DataError
from dla_data.synthetic.draws import distinct, integers, permutation, uniform, weighted

MANY = np.arange(20_000, dtype=np.int64)


def test_a_number_depends_on_seed_purpose_index_and_place_only():
    alone = uniform(7, "keys", np.array([5]), 3)
    assert np.array_equal(uniform(7, "keys", np.array([2, 5, 9]), 8)[1:2, :3], alone)
    for other in (uniform(8, "keys", np.array([5]), 3), uniform(7, "values", np.array([5]), 3)):
        assert not np.intersect1d(other, alone).size


def test_the_numbers_stay_what_they_are():
    """Other numbers would make other examples: a run could not go on, and no result could be repeated."""
    assert integers(1, "keys", np.array([0, 1, 10**12]), 3, 1000).tolist() == [
        [86, 843, 487],
        [391, 789, 923],
        [717, 210, 422],
    ]
    assert distinct(1, "keys", np.array([0, 1]), 4, 6).tolist() == [[1, 0, 5, 4], [3, 2, 0, 4]]


def test_uniform_is_uniform_and_independent_between_places_and_examples():
    drawn = uniform(3, "keys", MANY, 4)
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.stack([np.histogram(column, bins=64, range=(0, 1))[0] for column in drawn.T])
    chi_square = ((counts - len(MANY) / 64) ** 2 / (len(MANY) / 64)).sum(axis=1)
    assert chi_square.max() < 120, "63 degrees of freedom: above 120 once in 10^5"
    neighbors = np.corrcoef([drawn[:-1, 0], drawn[1:, 0], drawn[:-1, 1], drawn[:-1, 2]])
    assert np.abs(neighbors - np.eye(4)).max() < 0.03


def test_distinct_numbers_are_distinct_and_every_ordered_choice_is_equally_likely():
    drawn = distinct(3, "keys", MANY, 3, 5)
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    assert (drawn.min(), drawn.max()) == (0, 4)
    _, counts = np.unique(drawn @ [25, 5, 1], return_counts=True)
    expected = len(MANY) / 60
    assert len(counts) == 60
    assert ((counts - expected) ** 2 / expected).sum() < 110, "59 degrees of freedom"
    assert sorted(distinct(3, "keys", MANY[:1], 5, 5)[0].tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="6 different numbers out of 5"):
        distinct(3, "keys", MANY[:1], 6, 5)


def test_weighted_draws_are_those_made_one_after_the_other():
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    drawn = weighted(3, "gaps", MANY, 2, weights)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for first in range(4):
        assert (drawn[:, 0] == first).mean() == pytest.approx(weights[first] / 8, abs=0.015)
        for second in {0, 1, 2, 3} - {first}:
            expected = weights[first] / 8 * weights[second] / (8 - weights[first])
            assert ((drawn == [first, second]).all(axis=1)).mean() == pytest.approx(expected, abs=0.015)


def test_a_permutation_holds_everything_once():
    assert np.array_equal(np.sort(permutation(0, "order", MANY[:100], 9), axis=1), np.tile(np.arange(9), (100, 1)))


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (1 << 64, 0), (0, -1)])
def test_out_of_range(seed, index):
    with pytest.raises(DataError):
        uniform(seed, "keys", np.array([index]), 1)
