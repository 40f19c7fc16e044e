"""What the processes of a preflight that a launcher has started tell each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from torch.distributed import DistError, Store  # pyright: ignore[reportPrivateImportUsage]

from dla_train.distributed.meeting import LEAVE_TIME, LEAVE_TIME_AFTER_FAILURE, in_words, meet, take_leave
from dla_train.distributed.placement import Placement
from dla_train.preflight.check import Check

_RUNS_ARE_OVER, _ENDED = "runs are over", "ended"


class FirstHasEnded(Exception):
    """The first process waits for nobody any more; it has said why."""


class Meeting:
    """This process among those of the preflight.

    Args:
        store: where they meet; None where there are no others.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    def end_runs(self) -> None:
        """Of the first process: its part of the runs is done, and it begins no further one."""
        self._say(_RUNS_ARE_OVER)

    def end(self) -> None:
        """Of the first process: it waits for nobody any more."""
        self._say(_ENDED)

    def are_runs_over(self) -> bool:
        """Of the others: whether the first process has done its part of the runs, so that they would wait in vain.

        Raises:
            FirstHasEnded: it is not even there any more.
        """
        if self._store is None:
            return False
        try:
            if self._store.check([_ENDED]):
                raise FirstHasEnded
            return self._store.check([_RUNS_ARE_OVER])
        except DistError as error:  # the store went with the first process
            raise FirstHasEnded from error

    def tell(self, rank: int, checks: Sequence[Check]) -> None:
        """Of the others: what this one has found wrong."""
        with suppress(DistError):  # the first process does not wait for it any more
            self._say(_found_by(rank), json.dumps([asdict(check) for check in checks]))

    def told(self, rank: int) -> list[Check] | None:
        """Of the first process: what another one has found wrong; None if it has not said yet."""
        if self._store is None or not self._store.check([_found_by(rank)]):
            return None
        return [Check(**fields) for fields in json.loads(self._store.get(_found_by(rank)))]

    def _say(self, key: str, value: str = "") -> None:
        if self._store is not None:
            self._store.set(key, value)


def _found_by(rank: int) -> str:
    return f"found by {rank}"


@contextmanager
def met(placement: Placement) -> Iterator[Meeting]:
    """Meet the other processes; however the first one leaves the block, the others get to know.

    Raises:
        RunError: not all processes have arrived within 10 minutes, or another program has the port of rank 0.
    """
    if placement.launcher == "dla-train" or placement.world_size == 1:
        yield Meeting()
        return
    with in_words(placement):
        store = meet(placement)
    meeting = Meeting(store)
    patience = LEAVE_TIME_AFTER_FAILURE
    try:
        yield meeting
        patience = LEAVE_TIME
    finally:
        if placement.rank == 0:
            with suppress(DistError):  # torchrun's agent, which has the store, may be gone
                meeting.end()
        take_leave(store, placement, patience)
