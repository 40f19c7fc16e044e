"""Continues from a checkpoint as if a new epoch began at its step.

Lightning restores some twenty loop counters and derives from their differences where it was interrupted, assuming
loaders that begin anew and are a whole epoch long. Our loaders begin at the step (`WindowsDataModule`), so one integer
is enough: the counters of the whole run are set from it, and the others start at 0. This also works with another
micro-batch size or number of processes.
"""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class ResumePosition(Callback):
    """Replaces Lightning's own restoring of its loops."""

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove the loop counters from `checkpoint` before Lightning reads them, and set the position."""
        checkpoint.pop("loops", None)
        step = int(checkpoint["global_step"])
        loop = trainer.fit_loop.epoch_loop
        steps = {"ready": step, "completed": step}
        loop.automatic_optimization.optim_progress.optimizer.step.total.load_state_dict(steps)
        batches = step * trainer.accumulate_grad_batches
        loop.batch_progress.total.load_state_dict(
            {"ready": batches, "started": batches, "processed": batches, "completed": batches}
        )
        loop._batches_that_stepped = step
        assert trainer.global_step == step
