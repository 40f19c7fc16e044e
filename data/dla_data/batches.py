"""Which windows each rank takes at each step: the training order as a function of the step alone.

Optimizer step s uses the global indices `s * global_batch` to `(s + 1) * global_batch` of the order (shifted if earlier
steps had another batch size): the same windows in the same order on any number of ranks. Each rank gets one contiguous
piece of them, which is cut into micro-steps:

    share = global_batch / world_size
    rank r, micro-step a: micro_batch indices from s * global_batch + r * share + a * micro_batch

Reading the ranks in turn, and for each its micro-steps in turn, gives back the global batch. A rank's piece does not
depend on how it is cut into micro-steps, so the micro batch may change between runs (for other memory) without moving a
window to another rank.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from dla_data.counted import counted
from dla_data.errors import DataError


class Order(Protocol):
    """An endless sequence of window numbers: `WindowOrder` of one source, `MixedOrder` of several."""

    @property
    def window_count(self) -> int:
        """How many windows there are."""
        ...

    def windows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The windows at global indices `start` to `start + count` (exclusive), int64 [count]."""
        ...


class StepBatches(Sampler[list[int]]):
    """Batch sampler of one rank: the window numbers of its micro-batches, step by step.

    Resuming needs one integer, the number of finished optimizer steps, given as `first_step`. If not all of them had
    the same batch size, it also needs `windows_before`. Pass this to `DataLoader(batch_sampler=...)`; with Lightning
    also set `Trainer(use_distributed_sampler=False)`, or it shards and shuffles once more.

    Args:
        windows: how many windows the data set has; must be what `order` was made for.
        order: the endless sequence of windows.
        global_batch: windows per optimizer step, over all ranks.
        micro_batch: windows per forward pass on one rank.
        rank, world_size: this process among all.
        first_step, last_step: 0-based, `last_step` exclusive.
        windows_before: windows that the steps before `first_step` took, over all ranks; None: `global_batch` for each.
        accumulate: forward passes per optimizer step, as set in the trainer; None derives it from the other sizes.

    Raises:
        DataError: an argument out of range, or batch sizes that do not divide.
    """

    def __init__(
        self,
        *,
        windows: int,
        order: Order,
        global_batch: int,
        micro_batch: int,
        last_step: int,
        first_step: int = 0,
        windows_before: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int | None = None,
    ) -> None:
        if windows != order.window_count:
            raise DataError(f"the order was made for {order.window_count:,} windows, but the data has {windows:,}.")
        if min(global_batch, micro_batch, world_size) < 1:
            raise DataError(
                f"global_batch {global_batch}, micro_batch {micro_batch} and world_size {world_size}: "
                "each must be at least 1."
            )
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} is not among {world_size} ranks (0 to {world_size - 1}).")
        if not 0 <= first_step <= last_step:
            raise DataError(
                f"steps {first_step} to {last_step} asked for: the first must be 0 or more and not after the last."
            )
        if global_batch % (micro_batch * world_size):
            raise DataError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} x "
                f"{counted(world_size, 'rank')}. Choose sizes of which global_batch is a whole multiple."
            )
        needed = global_batch // (micro_batch * world_size)
        if accumulate is not None and accumulate != needed:
            raise DataError(
                f"global_batch {global_batch} = micro_batch {micro_batch} x {counted(world_size, 'rank')} x "
                f"{counted(needed, 'micro-step')}, but accumulate is {accumulate}. Set {needed}, or another batch size."
            )
        self.order = order
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.last_step = last_step
        self.windows_before = first_step * global_batch if windows_before is None else windows_before
        self.accumulate = needed

    def __len__(self) -> int:
        """Micro-batches left for this rank."""
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        share = self.global_batch // self.world_size
        for step in range(self.last_step - self.first_step):
            begin = self.windows_before + step * self.global_batch + self.rank * share
            own = self.order.windows(begin, share).reshape(self.accumulate, self.micro_batch)
            yield from own.tolist()
