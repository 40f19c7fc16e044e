"""The language model as Lightning sees it: loss, validation metrics, optimizer, learning rate, clipping, and nothing
else."""

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
    """Too many steps in a row had to be skipped (they changed nothing), or the model's loss is infinite or NaN."""


class LanguageModelTraining(lightning.LightningModule):
    """Next-token training.

    Args:
        model: initialized, or about to be restored from a checkpoint.
        optimizer, schedule, training: sections of the recipe.
        seed: together with the step, it seeds all random numbers drawn within a step.
    Attributes:
        gradient_norm: of the last step, before clipping.
        rate: the learning rate of the last step.
        skipped_steps: steps skipped because their gradient was not finite or a spike.
        skipped_in_a_row: how many of them came since the last step that was not skipped.
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
        # float64, so that no digit shown depends on the order in which batches are summed.
        self.validation_loss = MeanMetric().set_dtype(torch.float64)
        self.answer_accuracy = MeanMetric().set_dtype(torch.float64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer and no Lightning scheduler: `on_train_batch_start` sets the rate from the step."""
        return build_optimizer(self.optimizer_config, self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate and the random state as functions of the step, so that neither has to be restored."""
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
            micro_batches = trainer.accumulate_grad_batches * data.readers
            self._usual_answers = data.answers_of_step(self.global_step) / micro_batches

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of windows `[B, window + 1]`, in nats per token; of shared windows, the mean over ranks is that.

        For `Examples`, micro-batches may have different numbers of answers. The result is weighted so that its mean
        over all micro-batches of a step, on all ranks, is the step's loss in nats per answer.
        """
        inputs, targets, cu_seqlens = model_inputs(batch)
        # The z-loss enters only the gradient.
        loss = self.model.loss(inputs, targets, cu_seqlens, z_loss=self.training_config.z_loss)
        return loss * ((targets != IGNORED).sum() / self._usual_answers) if isinstance(batch, Examples) else loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the norm of the whole gradient, and scale the gradient down where it exceeds `training.clip`.

        A step whose norm is infinite, NaN or far above those before is skipped by dropping the gradients: optimizers
        then leave weights and running means as they are. The norm is that of all ranks, so they all decide alike.

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
        """Record the norm of a step's gradient, before clipping; returns False if the step must be skipped.

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
        spikes = f", raise training.skip_above ({self.spikes.factor})" if math.isfinite(norm) else ""
        raise Diverged(
            f"the gradient of step {step + 1} is {what}, {row} in a row: training diverged; {windows}. Lower "
            f"optimizer.lr (now {self.optimizer_config.lr}), lengthen schedule.warmup ({self.schedule.warmup}){spikes} "
            f"or lower training.clip ({self.training_config.clip}). How many in a row are skipped before: "
            f"training.max_nonfinite ({allowed})."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the number of skipped steps and the state of spike detection with the weights."""
        checkpoint["skipped_steps"] = [self.skipped_steps, self.skipped_in_a_row]
        checkpoint["gradient_norms"] = self.spikes.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved; checkpoints of versions without skipping do not have it."""
        self.skipped_steps, self.skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))
        if (norms := checkpoint.get("gradient_norms")) is not None:
            self.spikes.restore(norms)

    def on_validation_epoch_start(self) -> None:
        """Make the metrics float64 again, because `bf16-true` converts the whole module to bfloat16."""
        self.validation_loss.set_dtype(torch.float64)
        self.answer_accuracy.set_dtype(torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the loss of windows `[B, window + 1]` to the mean over all validation tokens; for `Examples`, add loss
        and accuracy to the means over all answers. A batch that another rank counts is read, too, because all ranks
        take part in every forward pass."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RecipeData)
        counts = data.validation_share.counts(batch_idx)
        if isinstance(batch, Examples):
            answers = answer(self.model, batch)
            self._add_to_validation(answers.loss if counts else answers.loss[:0])
            self.answer_accuracy.update(answers.is_right.double() if counts else answers.loss[:0])
            return
        inputs, targets, cu_seqlens = model_inputs(batch)
        loss = self.model.loss(inputs, targets, cu_seqlens)
        self._add_to_validation(loss if counts else loss.new_empty(0), weight=targets.numel())

    def _add_to_validation(self, loss: Tensor, weight: int = 1) -> None:
        # torchmetrics ignores NaN, and the mean over the rest would look like a valid one. Without `posinf`, infinity
        # would become the largest number.
        self.validation_loss.update(loss.double().nan_to_num(nan=math.inf, posinf=math.inf), weight=weight)

    def on_validation_epoch_end(self) -> None:
        """Publish `validation_loss` (nats per token or answer) and, where there are answers, `answer_accuracy`.

        The metric objects are published, not their values: they average over all ranks themselves, so Lightning need
        not know how to reduce them.

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
