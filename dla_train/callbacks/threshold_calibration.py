"""Sets the thresholds of dynamic memories to the boundary rate that the recipe asks for, and steers them if it says
so."""

import logging
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.step_boundary import begins_step, ends_step
from dla_train.models.calibration import calibrate_thresholds
from dla_train.models.language_model import LanguageModel
from dla_train.models.memory import Dynamic
from dla_train.models.memory_config import DynamicMemory
from dla_train.models.steering import ThresholdSteering
from dla_train.training.batch import model_inputs
from dla_train.training.module import LanguageModelTraining

_LOGGER = logging.getLogger(__name__)


class ThresholdCalibration(Callback):
    """Calibrates thresholds on the first micro-batch of each of the first `calibrate_steps` steps, over all ranks
    together; with `steer`, later steps adjust them to the scores of all their micro-batches.

    Thresholds are part of the model's state, so a resumed run continues with them, and calibrates only in what is left
    of the first steps. Steering has no other state: it moves the thresholds at the end of a step, before that step is
    saved.
    """

    def __init__(self) -> None:
        self._steering: ThresholdSteering | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Watch the scores, if thresholds are to be steered."""
        assert isinstance(pl_module, LanguageModelTraining)
        memory = _calibrated(pl_module)
        if memory is not None and memory.steer is not None:
            assert memory.calibrate_rate is not None
            self._steering = ThresholdSteering(pl_module.model, memory.calibrate_rate, memory.steer)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop watching."""
        if self._steering is not None:
            self._steering.close()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Calibrate if this is one of the first steps; in later ones, collect the scores."""
        assert isinstance(pl_module, LanguageModelTraining)
        model = pl_module.model
        memory = _calibrated(pl_module)
        if memory is None:
            return
        assert memory.calibrate_rate is not None
        if trainer.global_step >= memory.calibrate_steps:
            if self._steering is not None:
                self._steering.is_active = True
            return
        if not begins_step(trainer, batch_idx):
            return

        def add_up(count: Tensor) -> Tensor:
            total = trainer.strategy.reduce(count, reduce_op="sum")
            assert isinstance(total, Tensor)
            return total

        tokens, _, cu_seqlens = model_inputs(batch)
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            calibrate_thresholds(model, tokens, memory.calibrate_rate, cu_seqlens=cu_seqlens, add_up=add_up)
        if trainer.global_step == memory.calibrate_steps - 1:
            rate = memory.calibrate_rate
            _LOGGER.info("Thresholds for a boundary rate of %g, layer by layer: %s.", rate, _spans(model))

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Stop collecting, because what the backward pass recomputes must not be counted twice."""
        if self._steering is not None:
            self._steering.is_active = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the thresholds at the end of a step, unless the step was skipped: it must change nothing."""
        if self._steering is not None and ends_step(trainer, batch_idx):
            assert isinstance(pl_module, LanguageModelTraining)

            def mean(wanted: Tensor) -> Tensor:
                over_ranks = trainer.strategy.reduce(wanted, reduce_op="mean")
                assert isinstance(over_ranks, Tensor)
                return over_ranks

            if pl_module.skipped_in_a_row:
                self._steering.forget()
            self._steering.move(mean)
            if trainer.global_step == trainer.max_steps:
                _LOGGER.info("Thresholds after the last step, layer by layer: %s.", _spans(pl_module.model))


def _spans(model: LanguageModel) -> str:
    found = [layer.threshold.detach() for layer in model.modules() if isinstance(layer, Dynamic)]
    return ", ".join(f"{tau.min().item():.4f} to {tau.max().item():.4f}" for tau in found)


def _calibrated(module: LanguageModelTraining) -> DynamicMemory | None:
    memory = module.model.config.dynamic
    return None if memory is None or memory.calibrate_rate is None else memory
