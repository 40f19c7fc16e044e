"""The validation windows divided among the ranks, which all take part in every forward pass."""

from typing import NamedTuple


class ValidationShare(NamedTuple):
    """What one of several readers (ranks, or groups of ranks that share windows) validates on.

    Attributes:
        windows: number of all validation windows. micro_batch: how many at most make a batch.
        reader: number of this reader. readers: how many there are.
    """

    windows: int
    micro_batch: int
    reader: int = 0
    readers: int = 1

    @property
    def batches(self) -> list[list[int]]:
        """Windows of each batch of this reader, by number: as many batches for all readers, because sharded weights are
        gathered by all. A reader that has none left reads the first one once more, which does not count."""
        if not self.windows:
            return []
        every = [range(begin, min(begin + self._size, self.windows)) for begin in range(0, self.windows, self._size)]
        rounds = -(-len(every) // self.readers)
        numbers = [number * self.readers + self.reader for number in range(rounds)]
        return [list(every[number] if number < len(every) else every[0]) for number in numbers]

    def counts(self, batch: int) -> bool:
        """Whether this reader's batch of that number has windows that no other batch has."""
        return (batch * self.readers + self.reader) * self._size < self.windows

    @property
    def _size(self) -> int:
        """Windows of a batch, fewer than `micro_batch` if some reader would have none."""
        return min(self.micro_batch, -(-self.windows // self.readers))
