"""Processes that train runs side by side. They live as long as the study, because starting one takes as long as a
run."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from dla_train.errors import RunError
from dla_train.runs.console import mute_console, start_console
from dla_train.study.measure import measure
from dla_train.study.plan import StudyRun


def measure_all(
    runs: list[StudyRun], folder: Path, *, accelerator: str, jobs: int, until: float | None
) -> Iterator[tuple[StudyRun, dict[str, Any]]]:
    """Each run with its result, in the order in which they end.

    Args:
        runs: begun in this order. folder, accelerator: see `measure`. jobs: number of processes.
        until: a time of `time.monotonic`, after which no run is begun.
    Raises:
        RunError: a training failed, or its process was killed.
        KeyboardInterrupt: a training was told to stop.
    """
    waiting, going = iter(runs), {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
        while True:
            while len(going) < jobs and (until is None or time.monotonic() < until):
                if (run := next(waiting, None)) is None:
                    break
                going[pool.submit(measure, run, folder, accelerator)] = run
            if not going:
                return
            for done in wait(going, return_when=FIRST_COMPLETED).done:
                run = going.pop(done)
                try:
                    yield run, done.result()
                except BrokenProcessPool as error:
                    raise RunError(
                        f"the process that trained {run.name} was ended, perhaps for want of memory; the same command "
                        "goes on."
                    ) from error


def _begin() -> None:
    """Initialize a worker process: write only to the logs of runs, and end with the study, as the process would
    otherwise wait for work forever."""
    start_console()
    mute_console()
    study = parent_process()
    assert study is not None

    def end_with_it() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
