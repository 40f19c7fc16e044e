"""Ends a process that hangs (in a collective whose partner has died, or on a disk that does not answer) and says where.

A thread looks for signs of life and, if there are none, writes the stacks of all threads. If not even that thread can
run, because the hanging code holds the interpreter's lock, `faulthandler` writes the stacks to standard error after
twice the time and ends the process with exit code 1. Its timer goes by the clock: a process that is suspended (Ctrl-Z,
SIGSTOP, `scontrol suspend`) for longer than that ends when it continues.
"""

import faulthandler
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.runs.exit_code_file import announce_exit

EXIT_CODE = 75
"""Exit code of a process that hung: EX_TEMPFAIL of sysexits.h, as another try may succeed."""

_OTHERS = 15.0
"""Seconds between writing the stacks and ending: other ranks notice the hang a little later, and need time to write
theirs before srun ends them."""
_STANDARD_ERROR = 2


class Watchdog(Callback):
    """Watches training from its set-up to its end.

    Signs of life are micro-batches of training and of validation and the beginning of a save.

    Args:
        minutes: how long the process may be without a sign of life; None watches nothing.
        folder: for `hang-rank-0.txt` and the files of other ranks.
    """

    def __init__(self, minutes: float | None, folder: Path) -> None:
        self.limit = None if minutes is None else minutes * 60  # seconds
        self.folder = folder
        self._signs = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begin to watch."""
        if self.limit is not None and self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, args=(trainer, self.limit), name="watchdog", daemon=True
            )
            _arm(self.limit)  # here: the thread may not run before the lock is held for good
            self._thread.start()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note a sign of life, as the hooks below do."""
        self._signs += 1

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        self._signs += 1

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: torch.Tensor | dict[str, Any] | None,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        self._signs += 1

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: torch.Tensor | dict[str, Any] | None,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._signs += 1

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._signs += 1

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Training is over."""
        self._end_watch()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Training is over."""
        self._end_watch()

    def _end_watch(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, trainer: lightning.Trainer, limit: float) -> None:
        interval = min(limit / 10, 5.0)
        seen, idle = self._signs, 0.0
        while not self._ended.wait(interval):
            # Counts intervals in which this thread was awake, because a suspended process has not hung. The timer below
            # only knows the clock; it serves for the case that no Python thread can run.
            seen, idle = (self._signs, 0.0) if self._signs != seen else (seen, idle + interval)
            _arm(limit)
            if idle >= limit:
                self._give_up(trainer, limit)
        faulthandler.cancel_dump_traceback_later()

    def _give_up(self, trainer: lightning.Trainer, limit: float) -> None:
        rank = trainer.global_rank
        path = self.folder / f"hang-rank-{rank}.txt"
        idle = f"no step for {limit / 60:g} min after step {trainer.global_step}"
        what = f"rank {rank} on {socket.gethostname()}: {idle}"
        # Not through logging, whose locks the hanging code may hold.
        os.write(_STANDARD_ERROR, f"\ndla-train: error: {what}; the stacks are in {path}\n".encode())
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {what}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.write("\n")
        time.sleep(min(_OTHERS, limit))
        with suppress(OSError):  # the disk of the run folder may be what hangs
            announce_exit(EXIT_CODE)
        os._exit(EXIT_CODE)


def _arm(limit: float) -> None:
    """Set the timer for the case that no Python thread can run."""
    faulthandler.dump_traceback_later(2 * limit, file=_STANDARD_ERROR, exit=True)
