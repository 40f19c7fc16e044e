"""The further processes of a plain `dla-train fit` with several devices: started, watched, and ended with it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from dla_train.cores import usable_cores
from dla_train.distributed.placement import CHILD, Placement
from dla_train.runs.program import this_program

_GRACE_SECONDS = 20.0  # time for this process to notice by itself that another one has failed
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Children:
    """Ranks 1 and up on this machine; a context manager around the run.

    Args:
        arguments: of `dla-train`, the same for all ranks.
        placement: of this process, rank 0.
    """

    def __init__(self, arguments: Sequence[str], placement: Placement) -> None:
        cores = usable_cores()
        self._over = threading.Event()
        self._processes = [
            subprocess.Popen(
                [*this_program(), *arguments],
                env={
                    # Otherwise each process would start a thread for every core.
                    "OMP_NUM_THREADS": str(max(1, cores // placement.devices)),
                    **os.environ,
                    CHILD: f"{rank} {placement.devices} {placement.port}",
                },
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
            for rank in range(1, placement.devices)
        ]
        threading.Thread(target=self._watch, name="children", daemon=True).start()

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, error_type: object, *rest: object) -> None:
        """Wait for all processes: up to 2 minutes, or 20 s after a failure; then kill them."""
        self._over.set()
        deadline = time.monotonic() + (_GRACE_SECONDS if error_type else 120.0)
        for rank, process in enumerate(self._processes, start=1):
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                continue
            if code < 0:  # a process that ended in another way has reported why
                os.write(2, f"dla-train: {_ending(rank, code)}.\n".encode())

    def _watch(self) -> None:
        """End this process, saying why, if another one has failed and leaves it waiting in a collective."""
        while not self._over.wait(0.2):
            failed = [(rank, one.poll()) for rank, one in enumerate(self._processes, start=1) if one.poll()]
            if failed and not self._over.wait(_GRACE_SECONDS):
                rank, code = failed[0]
                os.write(2, f"dla-train: error: {_ending(rank, code or 0)}, so the run cannot go on.\n".encode())
                for process in self._processes:
                    process.kill()
                os._exit(1)


def _ending(rank: int, code: int) -> str:
    return f"rank {rank} was killed by signal {-code}" if code < 0 else f"rank {rank} ended with exit code {code}"


def die_with_parent() -> None:
    """For a child on Linux, as `preexec_fn`: makes it end with its parent, however that ends, even by SIGKILL. Without
    it, as on macOS, the child ends at its next exchange with the parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
