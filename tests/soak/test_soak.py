"""The soak in small, and that it would see a loss or a repetition."""

import pytest

from tests.soak.disturbed_run import DisturbedRun
from tests.soak.history import Note, chain, consumed, done_again, first_difference


@pytest.mark.slow
def test_a_run_of_two_ranks_hit_five_times_is_the_run_that_never_was(tmp_path):
    run = DisturbedRun(tmp_path, kills=5, seed=2)
    run.whole()
    for _ in range(5):
        run.hit()
    hits = run.finish()
    assert run.differences() == []
    assert run.excesses(hits) == []
    assert run.chains("disturbed") == run.chains("undisturbed")


def notes(*starts):
    """Each start: (step, batch) as they were trained on."""
    found = []
    for trained in starts:
        found += [Note(0.0, "start", 0, "1"), *(Note(0.0, "step", step, batch) for step, batch in trained)]
    return found


STRAIGHT = [(1, "a"), (1, "b"), (2, "c"), (2, "d"), (3, "e"), (3, "f")]


def test_a_step_that_was_cut_short_and_done_again_counts_once():
    assert consumed(notes(STRAIGHT[:3], STRAIGHT[2:])) == STRAIGHT
    assert consumed(notes(STRAIGHT[:5], [], STRAIGHT[2:])) == STRAIGHT
    assert done_again([notes(STRAIGHT[:5]), notes(STRAIGHT[2:])], 1) == 2
    assert done_again([notes(STRAIGHT[:4]), notes(STRAIGHT[4:])], 1) == 0


@pytest.mark.parametrize(
    ("starts", "difference"),
    [
        ([STRAIGHT[:2], STRAIGHT[4:]], "entry 3 is (3, 'e') instead of (2, 'c')"),  # a step lost
        ([STRAIGHT[:2], [(2, "a"), (2, "b"), *STRAIGHT[4:]]], "entry 3 is (2, 'a') instead of (2, 'c')"),  # repeated
        ([STRAIGHT[:3], STRAIGHT[3:]], "entry 3 is (2, 'd') instead of (2, 'c')"),  # half a step left out
        ([STRAIGHT, [(4, "g")]], "7 entries instead of 6"),
        ([STRAIGHT[:4]], "4 entries instead of 6"),
    ],
)
def test_what_is_lost_or_repeated_is_found(starts, difference):
    found = consumed(notes(*starts))
    assert chain(found) != chain(STRAIGHT)
    assert first_difference(STRAIGHT, found) == difference
