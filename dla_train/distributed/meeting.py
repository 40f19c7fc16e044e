"""The store where the processes of a run meet, which rank 0 or torchrun's agent keeps: coming, and leaving."""

import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from dla_data.counted import counted
from dla_train.distributed.placement import Launcher, Placement
from dla_train.errors import RunError

LEAVE_TIME = timedelta(minutes=1)
"""Until all have read the last decision."""
LEAVE_TIME_AFTER_FAILURE = timedelta(seconds=5)
_JOIN_TIME = timedelta(minutes=10)  # until all processes of a job have started
_POLL_SECONDS = 0.05

_OTHER_PORT: dict[Launcher, str] = {
    "dla-train": "Start again, which takes another one.",
    "torchrun": "Give torchrun another one: --master-port NUMBER.",
    "Slurm": "Choose another one for all processes: export MASTER_PORT=NUMBER before srun.",
}


def meet(placement: Placement) -> Store:
    """The store of all processes of a run, once they have come.

    Raises:
        DistError: they have not within 10 minutes, or rank 0's port is in use; `in_words` says which.
    """
    if placement.launcher == "torchrun":
        store, _, _ = next(iter(rendezvous("env://", timeout=_JOIN_TIME)))
        return own_part(store, placement.rank, placement.world_size)
    store = TCPStore(
        placement.address,
        placement.port,
        placement.world_size,
        is_master=placement.rank == 0,
        timeout=_JOIN_TIME,
    )
    return PrefixStore("run", store)


@contextmanager
def in_words(placement: Placement) -> Iterator[None]:
    """Within the block, what fails while processes meet is said in the user's words.

    Raises:
        RunError: not all processes have arrived, or another program has the port of rank 0.
    """
    try:
        yield
    except torch.distributed.DistError as error:
        if "EADDRINUSE" in str(error):
            raise RunError(
                f"port {placement.port} of {socket.gethostname()}, where the processes were to meet, is in use by "
                f"another program. {_OTHER_PORT[placement.launcher]}"
            ) from error
        raise RunError(
            f"rank {placement.rank} did not meet {counted(placement.world_size - 1, 'other process')} at "
            f"{placement.address}:{placement.port} ({error}). Look for the failure of another rank above, and "
            "check that the nodes reach each other."
        ) from error


def take_leave(store: Store, placement: Placement, patience: timedelta) -> None:
    """Let rank 0, which runs the store, wait for the others: they may still be reading the last decision there."""
    others = [f"left/{rank}" for rank in range(1, placement.world_size)]
    deadline = time.monotonic() + patience.total_seconds()
    with suppress(torch.distributed.DistError):  # a lost rank does not answer
        if placement.rank:
            store.set(f"left/{placement.rank}", "")
            return
        # Asked again and again, because the store's own `wait` writes to the console that it timed out.
        while not store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def own_part(store: Store, rank: int, world_size: int) -> Store:
    """A part of `store` in which nothing is written yet, the same for all ranks.

    torchrun's agent runs the store, and keeps it when it starts the processes again after a failure: what the lost ones
    wrote is still there. It counts restarts for each node separately, so rank 0 names the part, and tells each rank
    that asks. A question may be that of a lost process, so rank 0 answers until the rank itself confirms.

    Raises:
        DistStoreError: not all ranks have arrived within 10 minutes.
    """
    if rank:
        question = uuid.uuid4().hex
        store.set(f"asks/{rank}", question)
        name = store.get(f"answer/{question}").decode()
        store.set(f"{name}/knows/{rank}", "")
        return PrefixStore(name, store)
    name = f"run-{uuid.uuid4().hex}"
    deadline = time.monotonic() + _JOIN_TIME.total_seconds()
    for other in range(1, world_size):
        while not store.check([f"{name}/knows/{other}"]):
            if time.monotonic() > deadline:
                raise torch.distributed.DistStoreError(f"rank {other} has not arrived")
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", name)
            time.sleep(_POLL_SECONDS)
    return PrefixStore(name, store)
