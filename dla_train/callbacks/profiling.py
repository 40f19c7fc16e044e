"""Where the time of a few steps goes, and the memory of a GPU: a trace, a table and a snapshot for each rank."""

import gzip
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from dla_train.callbacks.config import ProfileConfig
from dla_train.callbacks.step_boundary import begins_step, ends_step

_LOGGER = logging.getLogger(__name__)

_ROWS = 30
"""Operators in the table; cheaper ones rarely matter."""
_MEMORY_EVENTS = 1_000_000
"""Allocations and releases that a snapshot keeps, the newest; about 100 MB of main memory at most."""


class Profiling(Callback):
    """Records the steps of the recipe's `profile` section; after a resume, those of them that are left.

    If there is a step before the first, the profiler warms up in it, because its first events cost more. A run that
    ends or fails within these steps leaves what was recorded until then, so that a step that runs out of GPU memory
    shows what used it. Must be the last callback, so that it records everything a step does.

    Args:
        config: which steps. folder: for the files, `step-00000010-rank-0.trace.json.gz` (by the first step) and such.
    """

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._begin = self._first = config.start
        self._last = config.last
        self._profiler: profile | None = None
        self._is_cuda = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """See which of the steps are still to come."""
        next_step = trainer.global_step + 1
        self._is_cuda = pl_module.device.type == "cuda"
        self._first = max(self.config.start, next_step)
        self._begin = max(self._first - 1, next_step)
        self._last = min(self.config.last, trainer.max_steps)  # what comes after the last step is none
        if next_step > self.config.last:
            _LOGGER.info("profile: steps %d to %d are done; nothing is recorded.", self.config.start, self.config.last)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin, if this is the first step or the one before."""
        if begins_step(trainer, batch_idx) and self._begin == trainer.global_step + 1 <= self._last:
            self._start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Mark the end of a step; write after the last one."""
        if self._profiler is None or not ends_step(trainer, batch_idx):
            return
        if trainer.global_step == self._last:
            self._finish(trainer)
        else:
            self._profiler.step()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write what there is."""
        self._finish(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is; what ended the run is what the user must see."""
        try:
            self._finish(trainer)
        except Exception as error:  # a GPU that failed may refuse anything
            _LOGGER.warning("the profile is lost: %s", error)

    def _start(self) -> None:
        if self._is_cuda:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS, stacks="python")
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_cuda else [])],
            schedule=schedule(wait=0, warmup=self._first - self._begin, active=self._last - self._first + 1),
            record_shapes=True,
            acc_events=True,
        )
        self._profiler.start()

    def _finish(self, trainer: lightning.Trainer) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        try:
            profiler.stop()
            if trainer.global_step + 1 >= self._first:  # else it was the warm-up that failed
                self._write(profiler, trainer.global_step, trainer.global_rank)
        except OSError as error:
            _LOGGER.warning("cannot write the profile to %s: %s. Training goes on.", self.folder, error.strerror)
        finally:
            if self._is_cuda:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, profiler: profile, step: int, rank: int) -> None:
        """What was recorded until the end of step `step`, or until it failed in the one after."""
        self.folder.mkdir(exist_ok=True)
        name = f"step-{self._first:08d}-rank-{rank}"
        trace = self.folder / f"{name}.trace.json.gz"
        unfinished = trace.with_name(f".{trace.name}")
        with tempfile.NamedTemporaryFile(suffix=".json") as plain:
            profiler.export_chrome_trace(plain.name)
            # Not by torch, which compresses line by line, and there are a hundred thousand to a step.
            with open(plain.name, "rb") as lines, gzip.open(unfinished, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(lines, packed, 2**20)
        os.replace(unfinished, trace)
        order = "self_device_time_total" if self._is_cuda else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
        heading = f"rank {rank}, from step {self._first} to the end of step {step}; the {_ROWS} costliest operators\n\n"
        (self.folder / f"{name}.operators.txt").write_text(heading + table, encoding="utf-8")
        if self._is_cuda:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"{name}.memory.pickle"))
        _LOGGER.info(
            "profile from step %d on: %s for https://ui.perfetto.dev, and %s beside it",
            self._first,
            trace,
            "a table and a memory snapshot" if self._is_cuda else "a table",
        )
