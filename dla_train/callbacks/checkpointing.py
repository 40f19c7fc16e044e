"""When to save: every N steps, at the end, and when told to stop."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dla_train.callbacks.step_boundary import begins_step
from dla_train.callbacks.stop_signal import Interrupted, StopSignal
from dla_train.checkpoints.config import CheckpointConfig
from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.state_file import state_bytes
from dla_train.checkpoints.store import STATE_NAME, CheckpointStore
from dla_train.distributed.ranks import Ranks
from dla_train.distributed.sharded_state import ShardedState
from dla_train.runs.exit_code_file import announce_exit


class Checkpointing(Callback):
    """Saves between two steps: after everything that belongs to the finished one, its validation included.

    Only a signal that comes while it validates is not kept waiting: the checkpoint then says that the validation is
    due, and whoever goes on from it begins with that. The last validation is finished, because nothing else is left.

    Args:
        store: where to. config: when, and what to keep. identity: of this run.
        stop: asked before every step whether to end.
        step: the step that training goes on from, which is saved already (or is 0).
        ranks: all of them; they save together, and rank 0 keeps the store.
    Attributes:
        seconds: spent saving so far.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        identity: RunIdentity,
        stop: StopSignal,
        step: int,
        ranks: Ranks,
    ) -> None:
        self.store = store
        self.config = config
        self.identity = identity
        self.stop = stop
        self.ranks = ranks
        self.seconds = 0.0
        self._saved_step = step
        self._validation_is_due = False

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {"validation_is_due": self._validation_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counterpart."""
        self._validation_is_due = state_dict["validation_is_due"]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Save if the step before was a multiple of `every`, or if this one is not to be; validate first if it is due.

        Raises:
            Interrupted: after saving, where a signal asked for the end.
            RunError: the checkpoint cannot be written.
        """
        if not begins_step(trainer, batch_idx):
            return
        if self._validation_is_due:
            _validate(trainer)
            self._validation_is_due = False
        self._stop_if_told(trainer)
        if self.config.every and trainer.global_step % self.config.every == 0:
            self.save(trainer)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a validation where a signal asks for the end: it may take longer than the cluster's patience.

        Raises:
            Interrupted: after saving. RunError: the checkpoint cannot be written.
        """
        if trainer.global_step < trainer.max_steps:
            self._validation_is_due = True
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """It was done."""
        self._validation_is_due = False

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last step."""
        self.save(trainer)

    def _stop_if_told(self, trainer: lightning.Trainer) -> None:
        told = self.stop.agreed(trainer)
        if told is not None:
            self.save(trainer)
            self.ranks.first(lambda: announce_exit(128 + told))
            raise Interrupted(told)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the checkpoint of the step that was just finished, unless it is there."""
        step = trainer.global_step
        if step == self._saved_step:
            return
        began = time.monotonic()
        needed = self._bytes_of(trainer)
        self.ranks.first(lambda: self.store.require_room(step, needed))
        with self.ranks.together(self.store.new(step, self.identity)) as folder:
            # Not `trainer.save_checkpoint`, which ends in a barrier: a rank that cannot write never gets there.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, folder / STATE_NAME)
        self.ranks.first(lambda: self.store.prune(self.config))
        self._saved_step = step
        self.seconds += time.monotonic() - began

    def _bytes_of(self, trainer: lightning.Trainer) -> int:
        if isinstance(trainer.strategy, ShardedState):
            return sum(self.ranks.gather(trainer.strategy.own_bytes()))
        return state_bytes(trainer.lightning_module, trainer.optimizers)


def _validate(trainer: lightning.Trainer) -> None:
    """As Lightning does it between two steps."""
    is_first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = is_first
