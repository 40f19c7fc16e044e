"""Which windows of the global batch a rank and its workers make.

Window i of step s has the index g = s * global_batch + i over the whole run (shifted if earlier steps had another batch
size) and comes from stream g % streams. Rank r of R makes the windows with g % R = r, so it alone reads the streams j
with j % R = r; its micro-batches hold its windows in turn. Worker w of W makes every W-th window of its rank and reads
every W-th of its streams.
"""

from dataclasses import dataclass

from dla_data.counted import counted
from dla_data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's share.

    Attributes:
        streams: over all ranks. global_batch: windows per optimizer step. rank, world_size: this process among all.
        workers: processes that read for this rank; 0 reads in the process itself.

    Raises:
        DataError: numbers that do not divide.
    """

    streams: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if min(self.streams, self.global_batch, self.world_size) < 1 or self.workers < 0:
            raise DataError(
                f"streams {self.streams}, global_batch {self.global_batch}, world_size {self.world_size} and workers "
                f"{self.workers}: each must be at least 1, and workers at least 0."
            )
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not among {self.world_size} ranks (0 to {self.world_size - 1}).")
        if self.global_batch % self.world_size:
            raise DataError(f"global_batch {self.global_batch} is not a multiple of {self.world_size} ranks.")
        readers = self.world_size * max(self.workers, 1)
        if self.streams % readers:
            raise DataError(
                f"{counted(self.streams, 'stream')} cannot be shared by {counted(self.world_size, 'rank')} x "
                f"{counted(max(self.workers, 1), 'worker')}: {readers} does not divide {self.streams}. Use "
                "another number of workers or ranks; another number of streams is another order of the windows, so a "
                "run cannot change it on its way."
            )

    @property
    def per_step(self) -> int:
        """Windows of this rank per optimizer step."""
        return self.global_batch // self.world_size

    def window(self, own: int) -> int:
        """The index, over the whole run, of this rank's window number `own`."""
        return own * self.world_size + self.rank

    def own_before(self, windows: int) -> int:
        """How many of the run's first `windows` windows are this rank's."""
        return (windows - self.rank + self.world_size - 1) // self.world_size

    def owned_streams(self) -> range:
        """The streams that this rank reads."""
        return range(self.rank, self.streams, self.world_size)
