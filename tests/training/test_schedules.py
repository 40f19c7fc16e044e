import math
from itertools import pairwise

import pytest

from dla_train.training.schedules import CosineSchedule, LinearSchedule, WSDSchedule

STEPS = 100


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(warmup=10, floor=0.1),
        LinearSchedule(warmup=10, floor=0.1),
        WSDSchedule(warmup=10, decay=20, floor=0.1),
    ],
)
def test_every_schedule_warms_up_reaches_the_peak_once_and_ends_at_the_floor(schedule):
    factors = [schedule.factor(step, STEPS) for step in range(STEPS)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(after <= before for before, after in pairwise(factors[9:])), "never up again"


def test_cosine_is_half_way_down_in_the_middle():
    schedule = CosineSchedule(warmup=0, floor=0.0)
    assert schedule.factor(49, STEPS) == pytest.approx(0.5)
    assert schedule.factor(24, STEPS) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_linear_is_a_line():
    schedule = LinearSchedule(warmup=20, floor=0.2)
    assert schedule.factor(59, STEPS) == pytest.approx(0.6)


def test_wsd_holds_the_peak_until_the_decay():
    schedule = WSDSchedule(warmup=10, decay=20, floor=0.0)
    assert {schedule.factor(step, STEPS) for step in range(9, 80)} == {1.0}
    assert schedule.factor(89, STEPS) == pytest.approx(0.5)
    assert schedule.factor(99, STEPS) == 0.0
    assert WSDSchedule(warmup=10, decay=0).factor(99, STEPS) == 1.0


def test_a_longer_run_shares_the_stable_part_of_wsd():
    schedule = WSDSchedule(warmup=10, decay=20)
    assert [schedule.factor(step, 100) for step in range(80)] == [schedule.factor(step, 200) for step in range(80)]


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert LinearSchedule(warmup=0, floor=1.0).factor(0, STEPS) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosineSchedule(warmup=-1), "warmup is -1; it must be at least 0 steps"),
        (lambda: LinearSchedule(warmup=0, floor=2.0), r"floor is 2.0; it must lie in \[0, 1\]"),
        (lambda: WSDSchedule(warmup=0, decay=-3), "decay is -3; it must be at least 0 steps"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
