"""One row of numbers per step and per validation, to `metrics.csv`, Lightning's logger and Weights & Biases."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.checkpointing import Checkpointing
from dla_train.callbacks.config import LoggingConfig
from dla_train.callbacks.device_memory import DeviceMemory
from dla_train.callbacks.memory_log import MemoryLog
from dla_train.callbacks.memory_watch import MemoryWatch, means
from dla_train.callbacks.step_boundary import begins_step, ends_step
from dla_train.callbacks.throughput import Throughput
from dla_train.data.consumed import Consumed
from dla_train.data.recipe_data import RecipeData
from dla_train.runs.metrics_file import TRAIN, VALIDATION, MetricsFile
from dla_train.runs.wandb_mirror import WandbMirror
from dla_train.training.module import LanguageModelTraining


def source_columns(tokens: Mapping[str, int]) -> dict[str, int]:
    """The columns of `metrics.csv` for the tokens seen of each source."""
    return {f"tokens.{name}": number for name, number in tokens.items()}


class StepMetrics(Callback):
    """Collects the numbers of a step and writes them.

    Args:
        file: `metrics.csv`, already cut back to the step that training goes on from; None on other ranks than 0.
        mirror: sends the same rows to Weights & Biases, or None.
        watch: of the memories. memories: where their distributions go.
        logging: section of the recipe; says how often the memories are looked at.
        throughput: of the recipe; what makes speed of seconds.
        checkpointing: its seconds do not count as training time.
        consumed: what was read by the end of a step.
        further: names of Lightning's metrics that a validation has besides loss and perplexity; columns of `file`.
    Attributes:
        train, validation: the newest row of either kind.
    """

    def __init__(
        self,
        file: MetricsFile | None,
        mirror: WandbMirror | None,
        watch: MemoryWatch,
        memories: MemoryLog,
        logging: LoggingConfig,
        throughput: Throughput,
        checkpointing: Checkpointing,
        consumed: Callable[[int], Consumed],
        further: Sequence[str] = (),
    ) -> None:
        self.file = file
        self.mirror = mirror
        self.watch = watch
        self.memories = memories
        self.logging = logging
        self.throughput = throughput
        self.checkpointing = checkpointing
        self.consumed = consumed
        self.further = further
        self.device_memory = DeviceMemory()
        self.train: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}
        self._loss = torch.zeros((), dtype=torch.float64)
        self._seconds_before = 0.0  # of earlier starts of this run
        self._began = time.monotonic()
        self._step_began = self._clock()
        self._validating = 0.0  # seconds of it within the current step
        self._takes_distributions = self._looks = False  # in the current step

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the rows to disk first: if a checkpoint were newer than they, a loss of power would leave a gap."""
        if self.file is not None:
            self.file.sync()
        self.memories.sync()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks."""
        self.throughput.start(pl_module.device, trainer.world_size)
        self.device_memory.start(pl_module.device)
        self._began = time.monotonic()
        self._step_began = self._clock()
        self._validating = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Begin a row."""
        if begins_step(trainer, batch_idx):
            self._loss = torch.zeros((), dtype=torch.float64, device=pl_module.device)
            self._takes_distributions = trainer.global_step % self.logging.histograms_every == 0
            self._looks = self._takes_distributions or trainer.global_step % self.logging.memory_every == 0
        self.watch.is_active = self._looks

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Stop watching, because what the backward pass computes again must not be counted twice."""
        self.watch.is_active = False

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
        now = self._clock()
        step_seconds = now - self._step_began - self._validating
        self._step_began, self._validating = now, 0.0
        seen = self.watch.collect(trainer.strategy)
        consumed = self.consumed(trainer.global_step)
        self.train = {
            "step": trainer.global_step,
            "split": TRAIN,
            "loss": float(trainer.strategy.reduce(self._loss, reduce_op="mean")),
            "lr": pl_module.rate,
            "grad_norm": pl_module.gradient_norm,
            "skipped": pl_module.skipped_steps,
            "tokens": consumed.tokens,
            "seconds": self._seconds(),
            **self.throughput.of_step(trainer.global_step - 1, step_seconds),
            **self.device_memory.of_step(),
            **source_columns(consumed.by_source),
            **means(seen),
        }
        self._write(trainer, self.train)
        if self._takes_distributions and seen:
            self.memories.write(trainer.global_step, TRAIN, seen, trainer.logger)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Watch the memories through the whole validation."""
        self._validating -= self._clock()
        self.watch.is_active = True

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what was seen of the memories, see `on_validation_batch_end`."""
        self.watch.mark()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Discard what was seen if another rank counts this batch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RecipeData)
        if not data.validation_share.counts(batch_idx):
            self.watch.go_back()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the validation's row."""
        self.watch.is_active = False
        seen = self.watch.collect(trainer.strategy)
        loss = trainer.callback_metrics["validation_loss"]
        self.validation = {
            "step": trainer.global_step,
            "split": VALIDATION,
            "loss": float(loss),
            "perplexity": float(loss.exp()),
            **{name: float(trainer.callback_metrics[name]) for name in self.further},
            "tokens": self.consumed(trainer.global_step).tokens,
            "seconds": self._seconds(),
            **means(seen),
        }
        if seen:
            self.memories.write(trainer.global_step, VALIDATION, seen, trainer.logger)
        self._write(trainer, self.validation)  # last: a run that goes on takes it to have been validated
        self._validating += self._clock()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the outputs; no more rows are written."""
        self.watch.close()
        self.memories.close()
        if self.file is not None:
            self.file.close()

    def _write(self, trainer: lightning.Trainer, row: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.append(row)
        if self.mirror is not None:
            self.mirror.append(row)
        if trainer.logger is not None:
            numbers = {f"{row['split']}/{name}": value for name, value in row.items() if name not in ("step", "split")}
            trainer.logger.log_metrics(numbers, step=row["step"])

    def _clock(self) -> float:
        """A time in seconds that stands still while training does for saving, in a validation, too."""
        return time.monotonic() - self.checkpointing.seconds

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began
