"""The processes of a run, joined before anything is written, so that they decide together from the start.

Decisions go through the store where the processes meet, not through collectives: it works before there is a device, and
lets one rank work for an hour while the others wait.
"""

import pickle
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

from dla_train.config.show import differences
from dla_train.distributed.children import Children
from dla_train.distributed.meeting import LEAVE_TIME, LEAVE_TIME_AFTER_FAILURE, in_words, meet, take_leave
from dla_train.distributed.placement import Placement
from dla_train.errors import RelayedError, RunError, UsageError
from dla_train.runs.exit_code_file import announce_exit

Result = TypeVar("Result")

_PATIENCE = timedelta(days=1)  # rank 0 may be preparing a corpus
_SHARED_FOLDER_SECONDS = 30.0

_SAME_FILES = "Make the same files visible on all nodes, and start all processes with the same settings."


class Ranks:
    """This process among those of the run.

    Args:
        rank, world_size: its place. store: where the processes meet; None for one process. local_rank: its place on its
            node.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None, local_rank: int = 0) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size
        self._store = store
        self._talks = 0
        self._said: list[str] = []  # keys written by rank 0 that another rank may not have read yet

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the run folder and talks to the user."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether this rank does what only one process per machine does."""
        return self.local_rank == 0

    def first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 and return its result on all ranks; to be called by all.

        Raises:
            Exception: on rank 0, what `work` raised. RelayedError: on the others, which only take over the exit code.
        """
        if self._store is None:
            return work()
        key = self._next()
        if self.is_first:
            try:
                result = work()
            except BaseException as error:
                code = getattr(error, "exit_code", None)
                if code is not None:
                    # Before the others know: they then leave, upon which srun may end this process.
                    with suppress(OSError):
                        announce_exit(code)
                self._say(key, (code or 1, None))
                raise
            self._say(key, (None, result))
            return result
        exit_code, result = _unpacked(self._store.get(key))
        if exit_code is not None:
            raise RelayedError(exit_code)
        return result

    def together(self, work: Callable[[], Result]) -> Result:
        """Do `work` on all ranks at the same time; each gets its own result. To be called by all.

        Raises:
            UsageError, RunError: on rank 0, the error of the lowest rank that failed. RelayedError: on the others.
        """
        results: list[Result] = []
        problem: UsageError | RunError | None = None
        try:
            results.append(work())
        except (UsageError, RunError) as error:
            problem = error
        problems = self.collect(problem)

        def refuse() -> None:
            for each in problems:
                if each is not None:
                    raise each

        self.first(refuse)
        return results[0]

    def collect(self, value: Any) -> list[Any]:
        """On rank 0, the values of all ranks in order; on the others, an empty list. To be called by all.

        If every rank got all values, rank 0's store would send a number of values that is the square of the ranks.
        """
        if self._store is None:
            return [value]
        key = self._next()
        if not self.is_first:
            self._store.set(f"{key}/{self.rank}", _packed(value))
            return []
        values = [value]
        for rank in range(1, self.world_size):
            values.append(_unpacked(self._store.get(f"{key}/{rank}")))
            self._store.delete_key(f"{key}/{rank}")
        for said in self._said:  # a rank that has come this far has read it
            self._store.delete_key(said)
        self._said.clear()
        return values

    def enter(self, manager: AbstractContextManager[Result]) -> Result:
        """Enter `manager` on rank 0 and return its value on all ranks; each then does its part until all `leave`."""
        return self.first(manager.__enter__)

    def leave(self, manager: AbstractContextManager[Any], failure: Exception | None) -> None:
        """Leave `manager` on rank 0, on every rank with an error if any rank's part failed.

        Args:
            failure: of this rank's part, or None. The part must not contain collectives, which a rank that fails would
                miss.
        """
        texts = self.collect(None if failure is None else f"{type(failure).__name__}: {failure}")

        def end() -> None:
            failed = next((f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None), None)
            error = failure or (OSError(failed) if failed else None)
            if error is None:
                manager.__exit__(None, None, None)
            elif not manager.__exit__(type(error), error, error.__traceback__):
                raise error

        self.first(end)
        if failure is not None:
            raise failure

    def require_shared(self, folder: Path) -> None:
        """Refuse a run folder that rank 0 has made but another rank does not see.

        Raises:
            UsageError: on rank 0; names the first host that does not see it.
        """
        name = self.first(lambda: f".seen-by-all-ranks-{uuid.uuid4().hex}")
        probe = folder / name
        try:
            self.first(lambda: _touch(probe))
            places = self.collect(None if appears(probe) else f"{socket.gethostname()} (rank {self.rank})")
        finally:
            if self.is_first:
                probe.unlink(missing_ok=True)
        blind = [place for place in places if place is not None]

        def refuse() -> None:
            if blind:
                raise UsageError(
                    f"the run folder {folder} of {socket.gethostname()} is not the one that {blind[0]} sees. All nodes "
                    "must share it: put it on a network file system with --run-dir."
                )

        self.first(refuse)

    def require_equal(self, value: dict[str, Any], what: str, advice: str = _SAME_FILES) -> None:
        """Refuse to continue if ranks differ in `value`.

        Args:
            value: of this rank. what: its name in the message. advice: how to make it equal.
        Raises:
            RunError: on rank 0; names the rank that differs, and in what. RelayedError: on the others.
        """
        found = self.collect((value, socket.gethostname()))

        def refuse() -> None:
            for rank, (other, host) in enumerate(found):
                if changed := differences(found[0][0], other):
                    values = ", ".join(f"{key} is {there} instead of {here}" for key, (here, there) in changed.items())
                    raise RunError(
                        f"{what} of rank {rank} on {host} differs from that of rank 0 on {found[0][1]}: {values}. "
                        f"{advice}"
                    )

        self.first(refuse)

    def _say(self, key: str, value: Any) -> None:
        assert self._store is not None
        self._said.append(key)
        self._store.set(key, _packed(value))

    def _next(self) -> str:
        self._talks += 1
        return f"dla-train/{self._talks}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether `error` is what a collective raises when another process is gone."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
    )


def _packed(value: Any) -> str:
    return pickle.dumps(value).hex()


def _unpacked(text: bytes) -> Any:
    return pickle.loads(bytes.fromhex(text.decode()))


@contextmanager
def joined(placement: Placement | None, arguments: Sequence[str]) -> Iterator[Ranks]:
    """Join the processes of the run, and start them if that is this process's task.

    Args:
        placement: of this process; None for a run of one process. arguments: of `dla-train`, for processes to start.
    Raises:
        RunError: not all processes have arrived within 10 minutes, another program has the port of rank 0, or rank 0
            was lost while this process waited for what it decides.
    """
    if placement is None:
        yield Ranks()
        return
    with Children(arguments, placement) if placement.has_to_launch else _nothing():
        # Tensors on GPUs go through NCCL, those in main memory through gloo.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with in_words(placement):
            store = meet(placement)
            torch.distributed.init_process_group(
                backend,
                store=PrefixStore("collectives", store),
                rank=placement.rank,
                world_size=placement.world_size,
            )
        store.set_timeout(_PATIENCE)
        try:
            yield Ranks(placement.rank, placement.world_size, store, placement.local_rank)
            take_leave(store, placement, LEAVE_TIME)
        except torch.distributed.DistError as error:
            raise RunError(
                f"rank {placement.rank} lost contact with rank 0, because that one failed or its node did: see its "
                "message or its log. --resume auto goes on with the run, or begins it anew if it had not begun."
            ) from error
        except Exception:
            take_leave(store, placement, LEAVE_TIME_AFTER_FAILURE)
            raise
        finally:
            torch.distributed.destroy_process_group()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise UsageError(f"cannot write into the run folder {path.parent}: {error.strerror}.") from error


def appears(path: Path) -> bool:
    """Wait until another node's file is visible here; false after 30 s. Network file systems show new files late."""
    deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
