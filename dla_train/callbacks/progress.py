"""How far the run is: a bar on a terminal, a line now and then anywhere else."""

import logging
import os
import sys
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from dla_train.callbacks.step_boundary import ends_step
from dla_train.callbacks.step_metrics import StepMetrics
from dla_train.runs.metrics_file import ANSWER_ACCURACY

_LOGGER = logging.getLogger(__name__)


class Progress(Callback):
    """Loss, tokens per second and time left. Must come after `StepMetrics`, whose rows it shows.

    Args:
        steps: of the whole run. metrics: where the numbers come from. seconds: between lines.
    """

    def __init__(self, steps: int, metrics: StepMetrics, seconds: float) -> None:
        self.steps = steps
        self.metrics = metrics
        self.seconds = seconds
        self._bar: tqdm | None = None
        self._first_step = 0
        self._began = self._said = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show where it begins."""
        self._first_step = trainer.global_step
        self._began = self._said = time.monotonic()
        if sys.stderr.isatty() and 0 not in os.get_terminal_size(sys.stderr.fileno()):  # some have no size, and hide it
            self._bar = tqdm(total=self.steps, initial=self._first_step, unit="step", dynamic_ncols=True, smoothing=0.1)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: torch.Tensor | dict[str, Any] | None,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Show the step."""
        if not ends_step(trainer, batch_idx):
            return
        row = self.metrics.train
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.3f}, {_speed(row)}", refresh=False)
            self._bar.update()
        now = time.monotonic()
        if now - self._said >= self.seconds or row["step"] in (self._first_step + 1, self.steps):
            self._said = now
            pace = (now - self._began) / (row["step"] - self._first_step)
            _LOGGER.log(
                logging.INFO if self._bar is None else logging.DEBUG,  # into the log file alone, beside a bar
                "step %d/%d  loss %.4f  lr %.2e  %s  %s left",
                row["step"],
                self.steps,
                row["loss"],
                row["lr"],
                _speed(row),
                tqdm.format_interval((self.steps - row["step"]) * pace),
            )

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say that the pause is a validation."""
        if self._bar is not None:
            self._bar.set_description("validating")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show its result."""
        if self._bar is not None:
            self._bar.set_description("")
        row = self.metrics.validation
        _LOGGER.info(
            "step %d/%d  validation loss %.4f  perplexity %.2f%s",
            row["step"],
            self.steps,
            row["loss"],
            row["perplexity"],
            f"  answers right {row[ANSWER_ACCURACY]:.1%}" if ANSWER_ACCURACY in row else "",
        )

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the message about the failure does not appear in it."""
        self._close()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the last state of the bar on the screen."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _speed(row: dict[str, Any]) -> str:
    """`4,065 tokens/s`, on a known device also `, 31.4% MFU`, and on a GPU `, 41.20 GB`."""
    share = f", {row['mfu']:.1%} MFU" if "mfu" in row else ""
    memory = f", {row['device_memory_gb']:.2f} GB" if "device_memory_gb" in row else ""
    return f"{row['tokens_per_second']:,.0f} tokens/s{share}{memory}"
