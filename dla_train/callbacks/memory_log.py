"""Where the distributions of the memories go: `memory.jsonl` and TensorBoard's histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import Logger
from torch import Tensor

from dla_train.callbacks.memory_seen import SIZE_LIMITS, MemorySeen
from dla_train.runs.event_files import EventFiles
from dla_train.runs.memory_file import MemoryFile

if TYPE_CHECKING:  # slow to import, and there if it is needed
    from torch.utils.tensorboard.writer import SummaryWriter


class MemoryLog:
    """Writes what the layers' memories did.

    Args:
        file: None on other ranks than 0, and where there is nothing to watch.
    """

    def __init__(self, file: MemoryFile | None) -> None:
        self.file = file

    def write(self, step: int, split: str, seen: Mapping[int, MemorySeen], logger: Logger | None) -> None:
        """A summary of each layer to the file, and its histograms to `logger` if that is TensorBoard's: boundary rates
        of heads, slots in use after tokens, and tokens in slots where sequences end."""
        if self.file is None:
            return
        self.file.append(step, split, {layer: one.summary() for layer, one in seen.items()})
        if isinstance(logger, EventFiles):
            logger.write(lambda writer: _write_histograms(writer, step, split, seen))

    def sync(self) -> None:
        """Bring the file to disk."""
        if self.file is not None:
            self.file.sync()

    def close(self) -> None:
        """Close the file; nothing more is written."""
        if self.file is not None:
            self.file.close()


def _write_histograms(writer: SummaryWriter, step: int, split: str, seen: Mapping[int, MemorySeen]) -> None:
    for layer, one in seen.items():
        writer.add_histogram(f"{split}_memory/boundary_rate_of_heads.{layer}", one.rates, step)
        _histogram(writer, f"{split}_memory/slots_in_use.{layer}", one.slots, range(len(one.slots)), step)
        if one.held:
            _histogram(writer, f"{split}_memory/tokens_per_slot.{layer}", one.sizes, SIZE_LIMITS, step)


def _histogram(writer: SummaryWriter, tag: str, counts: Tensor, values: Sequence[int], step: int) -> None:
    """Writes exact counts. `values`: the largest value of each bucket; empty buckets at both ends are left out."""
    filled = counts.nonzero()[:, 0].tolist()
    first, last = filled[0], filled[-1]
    weights, limits = counts[first : last + 1].tolist(), list(values[first : last + 1])
    writer.add_histogram_raw(
        tag,
        min=limits[0],
        max=limits[-1],
        num=sum(weights),
        sum=sum(weight * limit for weight, limit in zip(weights, limits, strict=True)),
        sum_squares=sum(weight * limit**2 for weight, limit in zip(weights, limits, strict=True)),
        bucket_limits=limits,
        bucket_counts=weights,
        global_step=step,
    )
