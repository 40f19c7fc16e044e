"""Ends a run, early or not, with a validation unless the recipe has none."""

import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.step_boundary import ends_step


class Ending(Callback):
    """Asks Lightning to stop, which lets it validate once more, whatever the interval.

    Args:
        steps: after how many optimizer steps. max_minutes: or after how much time of this process, if not None.
    Attributes:
        is_out_of_time: whether the minutes were over before the steps.
    """

    def __init__(self, steps: int, max_minutes: float | None) -> None:
        self.steps = steps
        self.max_minutes = max_minutes
        self.is_out_of_time = False
        self._began = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: torch.Tensor | dict | None,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Ask at the end of a step."""
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
        elif self.max_minutes is not None:
            late = time.monotonic() - self._began > self.max_minutes * 60
            if trainer.strategy.reduce_boolean_decision(late, all=False):
                self.is_out_of_time = trainer.should_stop = True
