"""The language model as Lightning sees it: loss, validation metrics, optimizer, rate, clipping. Nothing else lives
here."""

import logging
import math
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torchmetrics import MeanMetric

from dla_data.synthetic import IGNORED, Examples
from dla_train.callbacks.step_boundary import begins_step
from dla_train.data.recipe_data import RecipeData
from dla_train.errors import RunError
from dla_train.models import LanguageModel
from dla_train.training.answers import answer
from dla_train.training.batch import Batch, model_inputs
from dla_train.training.config import OptimizerConfig, TrainingConfig
from dla_train.training.gradient_norm import gradient_norm
from dla_train.training.optimizers import build_optimizer
from dla_train.training.schedules import ScheduleConfig
from dla_train.training.spikes import SpikeWatch

_LOGGER = logging.getLogger(__name__)


class Diverged(RunError):
    """Too many steps in a row had to be skipped, which have changed nothing; or the model's loss is no number."""


class LanguageModelTraining(lightning.LightningModule):
    """Next-token training.

    Args:
        model: initialised, or about to be restored from a checkpoint.
        optimizer, schedule, training: sections of the recipe.
        seed: with the step, seeds whatever is drawn inside a step.
    Attributes:
        gradient_norm: of the last step, before clipping.
        rate: the learning rate of the last step.
        skipped_steps, skipped_in_a_row: steps left out because their gradient was not finite or a spike, and those
            since the last that was neither.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        training: TrainingConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.training_config = training
        self.seed = seed
        self.gradient_norm = 0.0
        self.rate = 0.0
        self.skipped_steps = self.skipped_in_a_row = 0
        self._usual_answers = 0.0  # of a micro-batch of the current step, on average
        self.spikes = SpikeWatch(training.skip_above)
        # float64: a mean over many batches must not depend on the order of summation in any digit that is shown.
        self.validation_loss = MeanMetric().set_dtype(torch.float64)
        self.answer_accuracy = MeanMetric().set_dtype(torch.float64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer and no Lightning scheduler: `on_train_batch_start` sets the rate from the step."""
        return build_optimizer(self.optimizer_config, self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set rate and random state as functions of the step: what has no state cannot be restored wrongly."""
        self.rate = self.optimizer_config.lr * self.schedule.factor(self.global_step, self.training_config.steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate
        trainer = self.trainer
        # `batch_idx` begins anew at each start.
        place = trainer.global_rank * trainer.accumulate_grad_batches + batch_idx % trainer.accumulate_grad_batches
        torch.manual_seed((self.seed * 1_000_003 + self.global_step * 1_009 + place) % 2**63)
        if isinstance(batch, Examples) and begins_step(trainer, batch_idx):
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, RecipeData)
            micro_batches = trainer.accumulate_grad_batches * trainer.world_size
            self._usual_answers = data.answers_of_step(self.global_step) / micro_batches

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of windows `[B, window + 1]`, in nats per token.

        Of `Examples`, what makes the mean over the micro-batches of a step, on all ranks, the step's loss in nats per
        answer: they may have different numbers of answers, so their own means would not do.
        """
        inputs, targets, cu_seqlens = model_inputs(batch)
        # The z-loss is in the gradient alone.
        loss = self.model.loss(inputs, targets, cu_seqlens, z_loss=self.training_config.z_loss)
        return loss * ((targets != IGNORED).sum() / self._usual_answers) if isinstance(batch, Examples) else loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the norm of the whole gradient, and scale the gradient down where it exceeds `training.clip`.

        A step whose norm is infinite, not a number or far above those before is skipped: without a gradient, optimizers
        leave a weight and its running means as they are. The norm is that of all ranks, so they decide alike.

        Raises:
            Diverged: more than `training.max_nonfinite` such steps in a row.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not self.accepts(norm.item()):
            for parameter in parameters:
                parameter.grad = None
        elif self.training_config.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.training_config.clip, norm)

    def accepts(self, norm: float) -> bool:
        """Take in the gradient's norm of a step, before clipping; false if the step is to be skipped.

        Raises:
            Diverged: see `configure_gradient_clipping`.
        """
        self.gradient_norm = norm
        if not math.isfinite(norm) or self.spikes.is_spike(norm):
            self._skip_step(norm)
            return False
        self.skipped_in_a_row = 0
        self.spikes.take_in(norm)
        return True

    def _skip_step(self, norm: float) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        step, row = self.global_step, self.skipped_in_a_row
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RecipeData)
        first, following = data.windows_before(step), data.windows_before(step + 1)
        windows = f"its windows have the global indices {first} to {following - 1}"
        allowed = self.training_config.max_nonfinite
        what = f"{norm:g}, {norm / self.spikes.mean:.1f} times its mean" if math.isfinite(norm) else f"{norm}"
        if row <= allowed:
            _LOGGER.warning(
                "step %d is skipped: its gradient is %s; %s (%d in a row, of at most %d).",
                step + 1, what, windows, row, allowed,
            )  # fmt: skip
            return
        raise Diverged(
            f"the gradient of step {step + 1} is {what}, {row} in a row: training diverged; {windows}. Lower "
            f"optimizer.lr (now {self.optimizer_config.lr}), lengthen schedule.warmup ({self.schedule.warmup}) or "
            f"lower training.clip ({self.training_config.clip}). How many in a row are skipped before: "
            f"training.max_nonfinite ({allowed})."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """How many steps were skipped goes with the weights, and what tells a spike."""
        checkpoint["skipped_steps"] = [self.skipped_steps, self.skipped_in_a_row]
        checkpoint["gradient_norms"] = self.spikes.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The counterpart; a checkpoint of a version that skipped nothing has nothing of it."""
        self.skipped_steps, self.skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))
        if (norms := checkpoint.get("gradient_norms")) is not None:
            self.spikes.restore(norms)

    def on_validation_epoch_start(self) -> None:
        """Metrics are float64 again, after `bf16-true` has made all of this module bfloat16."""
        self.validation_loss.set_dtype(torch.float64)
        self.answer_accuracy.set_dtype(torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the loss of windows `[B, window + 1]` to the mean over all validation tokens; of `Examples`, loss and
        accuracy to the means over all answers."""
        if isinstance(batch, Examples):
            answers = answer(self.model, batch)
            self._add_to_validation(answers.loss)
            self.answer_accuracy.update(answers.is_right.double())
            return
        inputs, targets, cu_seqlens = model_inputs(batch)
        self._add_to_validation(self.model.loss(inputs, targets, cu_seqlens), weight=targets.numel())

    def _add_to_validation(self, loss: Tensor, weight: int = 1) -> None:
        # torchmetrics leaves out what is not a number, and the mean over the rest would look like a sound one.
        self.validation_loss.update(loss.double().nan_to_num(nan=math.inf), weight=weight)

    def on_validation_epoch_end(self) -> None:
        """Publish `validation_loss` (nats per token or answer) and, where there are answers, `answer_accuracy`.

        The metrics themselves, not their values: they are means over what all ranks have seen, the same on each, and
        Lightning need not be told how to reduce them.

        Raises:
            Diverged: the loss of any batch is infinite or not a number.
        """
        loss = self.validation_loss.compute()
        if not math.isfinite(loss):
            raise Diverged(
                f"the validation loss after step {self.global_step} is not finite: training diverged. Lower "
                f"optimizer.lr (now {self.optimizer_config.lr}) or lengthen schedule.warmup ({self.schedule.warmup})."
            )
        self.log("validation_loss", self.validation_loss, logger=False)
        if self.answer_accuracy.update_called:
            self.log("answer_accuracy", self.answer_accuracy, logger=False)
