import math
from functools import partial
from itertools import pairwise

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.training.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, WSDSchedule

STEPS = 100


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(warmup=10, floor=0.1),
        LinearSchedule(warmup=10, floor=0.1),
        WSDSchedule(warmup=10, decay=20, floor=0.1),
    ],
)
def test_every_schedule_that_falls_warms_up_and_reaches_the_floor_one_step_after_the_last(schedule):
    factors = [schedule.factor(step, STEPS) for step in range(STEPS)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == 1.0
    assert all(after <= before for before, after in pairwise(factors[9:])), "never up again"
    assert factors[-1] > 0.1
    assert schedule.factor(STEPS, STEPS) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 1, 10, 99])
@pytest.mark.parametrize("kind", [CosineSchedule, LinearSchedule, partial(WSDSchedule, decay=5)])
def test_every_step_trains_where_the_floor_is_0(kind, warmup):
    schedule = kind(warmup=warmup, floor=0.0)
    assert min(schedule.factor(step, STEPS) for step in range(STEPS)) > 0
    assert schedule.factor(STEPS, STEPS) == 0


def test_cosine_is_half_way_down_in_the_middle():
    schedule = CosineSchedule(warmup=0, floor=0.0)
    assert schedule.factor(49, 99) == pytest.approx(0.5)
    assert schedule.factor(24, 99) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_linear_is_a_line_of_equal_steps():
    schedule = LinearSchedule(warmup=20, floor=0.19)
    falls = [schedule.factor(step, STEPS) - schedule.factor(step + 1, STEPS) for step in range(19, STEPS)]
    assert falls == pytest.approx([0.01] * 81)


def test_wsd_holds_the_peak_until_the_decay():
    schedule = WSDSchedule(warmup=10, decay=19, floor=0.0)
    assert {schedule.factor(step, STEPS) for step in range(9, 81)} == {1.0}
    assert [schedule.factor(step, STEPS) for step in range(81, 100)] == pytest.approx(
        [1 - n / 20 for n in range(1, 20)]
    )
    assert WSDSchedule(warmup=10, decay=1).factor(99, STEPS) == pytest.approx(0.5), (
        "one step of decay is below the peak"
    )
    assert WSDSchedule(warmup=10, decay=0).factor(99, STEPS) == 1.0


def test_constant_warms_up_and_stays():
    schedule = ConstantSchedule(warmup=4)
    assert [schedule.factor(step, STEPS) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.factor(STEPS - 1, STEPS) == 1.0


def test_a_schedule_is_given_by_its_name_alone_and_a_recipe_needs_no_description(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("""\
model: {vocab_size: 300, hidden: 16, layers: 1, mixer: {kind: attention, heads: 2}}
data: {kind: stdlib, vocab_size: 300, window: 24}
optimizer: {kind: adamw, lr: 1e-3}
schedule: constant
training: {steps: 20, global_batch: 4, micro_batch: 4}
""")
    recipe = load(find(str(path))).recipe
    assert recipe.schedule == ConstantSchedule(warmup=0)
    assert recipe.description == ""
    assert load(find(str(path)), ["schedule=linear"]).recipe.schedule == LinearSchedule(warmup=0, floor=0.0)


def test_a_longer_run_shares_the_stable_part_of_wsd():
    schedule = WSDSchedule(warmup=10, decay=20)
    assert [schedule.factor(step, 100) for step in range(80)] == [schedule.factor(step, 200) for step in range(80)]


def test_without_warm_up_the_first_step_is_not_held_back():
    assert ConstantSchedule().factor(0, STEPS) == 1.0
    assert LinearSchedule().factor(0, STEPS) == pytest.approx(1 - 1 / (STEPS + 1)), "the line's first step"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosineSchedule(warmup=-1), "warmup is -1; it must be at least 0 steps"),
        (lambda: LinearSchedule(warmup=0, floor=2.0), r"floor is 2.0; it must lie in \[0, 1\]"),
        (lambda: ConstantSchedule(warmup=-2), "warmup is -2; it must be at least 0 steps"),
        (lambda: WSDSchedule(warmup=0, decay=-3), "decay is -3; it must be at least 0 steps"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
