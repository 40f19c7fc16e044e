"""Which rows of `metrics.csv` W&B has, although it only says how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dla_train.runs.metrics_file import RowKey


@dataclass(frozen=True)
class SentRows:
    """W&B's rows from number `count` on are the rows of `metrics.csv` after `last`, in order.

    Attributes:
        count: number of rows before them. last: the newest of those; None for none.
    """

    count: int = 0
    last: RowKey | None = None

    def later(self, rows: Sequence[RowKey]) -> list[RowKey]:
        """Those of `rows` that come after `last`."""
        return [row for row in rows if self.precede(row)]

    def precede(self, row: RowKey) -> bool:
        """Whether these rows end before `row`."""
        return self.last is None or row > self.last

    def at(self, count: int, rows: Sequence[RowKey]) -> SentRows:
        """The same where W&B has `count` rows.

        Args:
            count: as W&B says. rows: that `metrics.csv` has had since this was noted. If W&B has more, the result is as
                far as they reach.
        """
        # W&B has fewer than were noted if they are in an offline start that was never synced.
        known = self if count >= self.count else SentRows()
        sent = known.later(rows)[: count - known.count]
        return SentRows(known.count + len(sent), sent[-1]) if sent else known
