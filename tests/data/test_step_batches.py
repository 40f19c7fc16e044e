"""What a step trains on does not depend on the number of ranks, the micro-batch, or where the run was resumed."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dla_data.batches import StepBatches
from dla_data.errors import DataError
from dla_data.order import WindowOrder
from dla_data.windows import PackedWindows

WINDOWS, GLOBAL_BATCH, STEPS = 23, 8, 7  # the steps reach into the third epoch
ORDER = WindowOrder(WINDOWS, seed=5)


def batches(**changes: int) -> StepBatches:
    settings = {"windows": WINDOWS, "global_batch": GLOBAL_BATCH, "micro_batch": 2, "last_step": STEPS}
    return StepBatches(order=ORDER, **{**settings, **changes})


@pytest.mark.parametrize(
    ("world_size", "micro_batch"), [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)]
)
def test_every_step_is_the_same_global_batch_for_any_number_of_ranks(world_size: int, micro_batch: int) -> None:
    ranks = [batches(world_size=world_size, rank=rank, micro_batch=micro_batch) for rank in range(world_size)]
    accumulate = GLOBAL_BATCH // world_size // micro_batch
    taken = [np.array(list(rank)).reshape(STEPS, accumulate * micro_batch) for rank in ranks]
    assert all(len(rank) == STEPS * accumulate for rank in ranks)
    together = np.concatenate(taken, axis=1)  # [STEPS, GLOBAL_BATCH], ranks in turn
    np.testing.assert_array_equal(together.ravel(), ORDER.windows(0, STEPS * GLOBAL_BATCH))


@pytest.mark.parametrize("first_step", [0, 1, 4, STEPS])
def test_resuming_gives_the_tail_of_the_straight_run(first_step: int) -> None:
    straight = list(batches(world_size=2, rank=1))
    resumed = batches(world_size=2, rank=1, first_step=first_step)
    assert list(resumed) == straight[first_step * 2 :]
    assert len(resumed) == len(straight) - first_step * 2
    assert list(resumed) == list(resumed)  # a second pass begins at the same place


def test_steps_of_another_batch_leave_no_window_out() -> None:
    before = batches(global_batch=8, last_step=3)
    after = batches(global_batch=4, micro_batch=2, first_step=3, windows_before=24, last_step=6)
    np.testing.assert_array_equal(np.concatenate([*before, *after]), ORDER.windows(0, 3 * 8 + 3 * 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_delivers_the_windows_in_this_order(write_tokens, workers: int) -> None:
    tokens = write_tokens([list(range(1, 299))])
    data = PackedWindows(tokens, window=12)
    order = WindowOrder(len(data), seed=1)
    sampler = StepBatches(windows=len(data), order=order, global_batch=4, micro_batch=2, last_step=9)
    got = torch.cat(list(DataLoader(data, batch_sampler=sampler, num_workers=workers)))
    expected = torch.stack([data[window] for window in order.windows(0, 36).tolist()])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch": 3}, "global_batch 8 is not a multiple of micro_batch 3 x 1 rank[.]"),
        ({"world_size": 3, "micro_batch": 1}, "not a multiple of micro_batch 1 x 3 ranks"),
        ({"accumulate": 3}, "x 4 micro-steps, but accumulate is 3"),
        ({"micro_batch": 0}, "at least 1"),
        ({"world_size": 2, "rank": 2}, "rank 2 is not among 2 ranks"),
        ({"first_step": 8}, "steps 8 to 7"),
        ({"first_step": -1}, "steps -1"),
        ({"windows": 24}, "made for 23 windows, but the data has 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        batches(**changes)


def test_the_right_number_of_micro_steps_is_accepted() -> None:
    assert batches(accumulate=4).accumulate == batches().accumulate == 4
