"""One row of numbers per step and per validation, to `metrics.csv` and to Lightning's logger."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.checkpointing import Checkpointing
from dla_train.callbacks.memory_watch import MemoryWatch
from dla_train.callbacks.step_boundary import begins_step, ends_step
from dla_train.callbacks.throughput import Throughput
from dla_train.runs.metrics_file import TRAIN, VALIDATION, MetricsFile
from dla_train.training.module import LanguageModelTraining


def source_columns(tokens: Mapping[str, int]) -> dict[str, int]:
    """The columns of `metrics.csv` for the tokens seen of each source."""
    return {f"tokens.{name}": number for name, number in tokens.items()}


class StepMetrics(Callback):
    """Collects the numbers of a step and writes them.

    Args:
        file: `metrics.csv`, already cut back to the step that training goes on from; None on other ranks than 0.
        watch: of the memories. memory_every: steps between looks at them.
        throughput: of the recipe; what makes speed of seconds.
        checkpointing: its seconds do not count as training time.
        tokens_by_source: for a number of steps, the tokens of each source in them (`source_columns`).
        further: names of Lightning's metrics that a validation has besides loss and perplexity; columns of `file`.
    Attributes:
        train, validation: the newest row of either kind.
    """

    def __init__(
        self,
        file: MetricsFile | None,
        watch: MemoryWatch,
        memory_every: int,
        throughput: Throughput,
        checkpointing: Checkpointing,
        tokens_by_source: Callable[[int], Mapping[str, int]] = lambda steps: {},
        further: Sequence[str] = (),
    ) -> None:
        self.file = file
        self.watch = watch
        self.memory_every = memory_every
        self.throughput = throughput
        self.tokens_per_step = throughput.tokens_per_step
        self.checkpointing = checkpointing
        self.tokens_by_source = tokens_by_source
        self.further = further
        self.train: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}
        self._loss = torch.zeros((), dtype=torch.float64)
        self._seconds_before = 0.0  # of earlier starts of this run
        self._began = self._step_began = time.monotonic()
        self._pauses = 0.0  # within the current step: saving and validating

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What comes out of it."""
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A checkpoint must not be newer than the rows on disk, or a loss of power would leave a gap between them."""
        if self.file is not None:
            self.file.sync()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks."""
        self.throughput.start(pl_module.device, trainer.world_size)
        self._began = self._step_began = time.monotonic()
        self._pauses = -self.checkpointing.seconds

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Begin a row."""
        if begins_step(trainer, batch_idx):
            self._loss = torch.zeros((), dtype=torch.float64, device=pl_module.device)
            self.watch.is_active = trainer.global_step % self.memory_every == 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Tensor | dict[str, Any] | None,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Add a micro-batch, and write the row if it was the step's last."""
        assert isinstance(outputs, dict)
        assert isinstance(pl_module, LanguageModelTraining)
        self._loss = self._loss + outputs["loss"].double()  # divided by their number already
        if not ends_step(trainer, batch_idx):
            return
        self.watch.is_active = False
        now = time.monotonic()
        step_seconds = now - self._step_began - self._pauses - self.checkpointing.seconds
        self._step_began, self._pauses = now, -self.checkpointing.seconds
        self.train = {
            "step": trainer.global_step,
            "split": TRAIN,
            "loss": float(trainer.strategy.reduce(self._loss, reduce_op="mean")),
            "lr": pl_module.rate,
            "grad_norm": float(pl_module.gradient_norm),
            "skipped": pl_module.skipped_steps,
            "tokens": trainer.global_step * self.tokens_per_step,
            "seconds": self._seconds(),
            **self.throughput.of_step(step_seconds),
            **source_columns(self.tokens_by_source(trainer.global_step)),
            **self.watch.collect(trainer.strategy),
        }
        self._write(trainer, self.train)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Watch the memories through the whole validation."""
        self._pauses -= time.monotonic()
        self.watch.is_active = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the validation's row."""
        self.watch.is_active = False
        self.validation = {
            "step": trainer.global_step,
            "split": VALIDATION,
            "loss": float(trainer.callback_metrics["validation_loss"]),
            "perplexity": float(trainer.callback_metrics["validation_perplexity"]),
            **{name: float(trainer.callback_metrics[name]) for name in self.further},
            "tokens": trainer.global_step * self.tokens_per_step,
            "seconds": self._seconds(),
            **self.watch.collect(trainer.strategy),
        }
        self._write(trainer, self.validation)
        self._pauses += time.monotonic()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """No more rows."""
        self.watch.close()
        if self.file is not None:
            self.file.close()

    def _write(self, trainer: lightning.Trainer, row: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.append(row)
        if trainer.logger is not None:
            numbers = {f"{row['split']}/{name}": value for name, value in row.items() if name not in ("step", "split")}
            trainer.logger.log_metrics(numbers, step=row["step"])

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began
