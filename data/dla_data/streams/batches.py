"""The micro-batches of one rank, step by step, and the positions that they leave the streams at."""

import logging
import signal
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from dla_data.counted import counted
from dla_data.errors import DataError, raise_or_return
from dla_data.streams.positions import StreamPositions
from dla_data.streams.share import Share
from dla_data.streams.windows import StreamedText, StreamedWindow, StreamWindows

_LOGGER = logging.getLogger("dla_data")


class StreamBatches:
    """Micro-batches `[micro_batch, window + 1]` int64 of one rank.

    Its length is known, so that Lightning does not fetch a batch ahead. `positions` reflect the windows handed out,
    however far workers have read ahead.

    Args:
        text: what is read. share: of this rank. positions: of the streams at `first_step`; moved on by iterating.
        micro_batch: windows per forward pass on this rank. first_step, last_step: optimizer steps, `last_step`
            exclusive. windows_before: of all ranks before `first_step`; None counts the global batch for each step.
            pin_memory: for quicker copies to a GPU.

    Raises:
        DataError: the share of a step is not a multiple of the micro-batch.
    """

    def __init__(
        self,
        text: StreamedText,
        share: Share,
        positions: StreamPositions,
        *,
        micro_batch: int,
        first_step: int,
        last_step: int,
        windows_before: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if share.per_step % micro_batch:
            raise DataError(
                f"global_batch {share.global_batch} is not a multiple of micro_batch {micro_batch} x "
                f"{counted(share.world_size, 'rank')}. Choose sizes of which global_batch is a whole multiple."
            )
        self.text = text
        self.share = share
        self.positions = positions
        self.micro_batch = micro_batch
        self.first_step = first_step
        self.last_step = last_step
        self.windows_before = first_step * share.global_batch if windows_before is None else windows_before
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Micro-batches from the first step to the last."""
        return (self.last_step - self.first_step) * (self.share.per_step // self.micro_batch)

    def __iter__(self) -> Iterator[torch.Tensor]:
        first = self.share.own_before(self.windows_before)
        bounds = first, first + (self.last_step - self.first_step) * self.share.per_step
        loader = DataLoader(
            StreamWindows(self.text, self.share, self.positions, *bounds),
            batch_size=None,
            num_workers=self.share.workers,
            worker_init_fn=_ignore_interrupts,
        )
        items = iter(loader)
        began = time.monotonic()
        micro_steps = self.share.per_step // self.micro_batch
        try:
            for number in range(self.first_step * micro_steps, self.last_step * micro_steps):
                batch = torch.stack([self._note(next(items)) for _ in range(self.micro_batch)])
                if number == self.first_step * micro_steps and self.share.rank == 0:
                    _LOGGER.info("first batch after %.1f s", time.monotonic() - began)
                step, micro_step = divmod(number, micro_steps)
                if micro_step == micro_steps - 1:
                    # Before the batch is handed out: after the last one, this generator is not resumed.
                    self.positions.begin(step + 1)
                yield batch.pin_memory() if self.pin_memory else batch
        finally:
            del items  # ends the workers, which the traceback of an error would otherwise keep alive

    def _note(self, item: StreamedWindow | DataError) -> torch.Tensor:
        window = raise_or_return(item)
        self.positions.move(window.stream, window.source, window.state)
        return window.tokens


def _ignore_interrupts(worker: int) -> None:
    """Ignores Ctrl-C, which every process of the terminal receives: the trainer decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
