"""Sets the thresholds of dynamic memories in the first steps of a run, where the recipe asks for a boundary rate."""

import logging
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.step_boundary import begins_step
from dla_train.models.calibration import calibrate_thresholds
from dla_train.models.config import DynamicMemory
from dla_train.models.memory import Dynamic
from dla_train.training.batch import model_inputs
from dla_train.training.module import LanguageModelTraining

_LOGGER = logging.getLogger(__name__)


class ThresholdCalibration(Callback):
    """Calibrates on the first micro-batch of each of the first `calibrate_steps` steps, over all ranks together.

    Thresholds are part of the model's state, so a resumed run goes on with them, and calibrates only in what is left of
    those steps.
    """

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Calibrate, if this is one of those steps."""
        assert isinstance(pl_module, LanguageModelTraining)
        model = pl_module.model
        memory = getattr(model.config.mixer, "memory", None)
        if not isinstance(memory, DynamicMemory) or memory.calibrate_rate is None:
            return
        if trainer.global_step >= memory.calibrate_steps or not begins_step(trainer, batch_idx):
            return

        def add_up(count: Tensor) -> Tensor:
            total = trainer.strategy.reduce(count, reduce_op="sum")
            assert isinstance(total, Tensor)
            return total

        tokens, _, cu_seqlens = model_inputs(batch)
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            calibrate_thresholds(model, tokens, memory.calibrate_rate, cu_seqlens=cu_seqlens, add_up=add_up)
        if trainer.global_step == memory.calibrate_steps - 1:
            found = [layer.threshold.detach() for layer in model.modules() if isinstance(layer, Dynamic)]
            spans = ", ".join(f"{tau.min().item():.3f} to {tau.max().item():.3f}" for tau in found)
            _LOGGER.info("Thresholds for a boundary rate of %g, layer by layer: %s.", memory.calibrate_rate, spans)
