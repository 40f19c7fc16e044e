"""When to save: every N steps, at the end, and when told to stop."""

import logging
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
from dla_train.checkpoints.writing import Writing
from dla_train.data.recipe_data import RecipeData
from dla_train.distributed.ranks import Ranks
from dla_train.distributed.sharded_state import ShardedState
from dla_train.errors import RunError
from dla_train.runs.exit_code_file import announce_exit

_LOGGER = logging.getLogger(__name__)

_NOTICEABLE_SECONDS = 1.0


class Checkpointing(Callback):
    """Saves between two steps, after everything that belongs to the finished step, including its validation.

    The steps that follow do not wait for the disk, only for a copy in main memory (`checkpoint.background`); the end of
    the run waits for the disk.

    Only the last step is saved before its validation: whatever befalls that, no step is trained again. And a signal
    during another validation does not wait for its end. Such a checkpoint notes that the validation is due, and a run
    that continues from it begins with that. A signal does not end the last one, because nothing else is left.

    Args:
        store: where to. config: when, and what to keep. identity: of this run.
        stop: asked before every step whether to end.
        saved_step: the step that training continues from, if `store` has it (or it is 0). None if only another run's
            store has it: it is then saved before the first step, so that `store` has something to continue from.
        ranks: all of them; they save together, and rank 0 manages the store.
        is_validated: whether the step that the run goes on from was validated, be it after its checkpoint.
    Attributes:
        seconds: how long training has stood still for saving so far.
        validation_is_due: whether the validation of the newest step is still to come, or under way.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        identity: RunIdentity,
        stop: StopSignal,
        saved_step: int | None,
        ranks: Ranks,
        is_validated: bool = False,
    ) -> None:
        self.store = store
        self.config = config
        self.identity = identity
        self.stop = stop
        self.ranks = ranks
        self.seconds = 0.0
        self._saved_step = saved_step
        self._is_validated = is_validated
        self.validation_is_due = False
        self._writing: Writing | None = None
        self._is_slow_disk_known = False

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {"validation_is_due": self.validation_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.validation_is_due = state_dict["validation_is_due"] and not self._is_validated

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """See to it that a run whose steps are all done has its last validation; Lightning would do nothing. It may be
        due, or never have been planned after that step: the run may go on to fewer steps than it had before."""
        loop = trainer.fit_loop
        run = loop.run

        def validate_and_run() -> None:
            if not self._is_validated and trainer.global_step >= trainer.max_steps:
                self._validate(trainer)
            run()

        loop.run = validate_and_run  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Save if the step before was a multiple of `every`, if a run that branched off has saved nothing yet, or if
        the run stops before this step; validate first if that is due.

        Raises:
            Interrupted: after saving, if a signal asked for the end.
            RunError: the checkpoint cannot be written.
        """
        if not begins_step(trainer, batch_idx):
            return
        self._finish_if_written(trainer)
        if self.validation_is_due:
            self._validate(trainer)
        self._stop_if_told(trainer)
        if self._saved_step is None or (self.config.every and trainer.global_step % self.config.every == 0):
            self.save(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save before the last validation, and wait for the disk.

        Raises:
            RunError: the checkpoint cannot be written.
        """
        self.validation_is_due = True
        if trainer.global_step >= trainer.max_steps or trainer.should_stop:
            self.save(trainer)
            self._finish()

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Break off a validation if a signal asks for the end: it may take longer than the cluster waits.

        Raises:
            Interrupted: after saving. RunError: the checkpoint cannot be written.
        """
        self._finish_if_written(trainer)
        if trainer.global_step < trainer.max_steps:
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that the validation was done."""
        self.validation_is_due = False

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last step, unless that was done before its validation."""
        self.save(trainer)
        self._finish()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Complete a checkpoint that is being written, if that needs no other rank."""
        if self._writing is not None and self.ranks.world_size == 1:
            try:
                self._finish()
            except RunError as error:
                _LOGGER.warning("%s", error)

    def _validate(self, trainer: lightning.Trainer) -> None:
        """As Lightning does it between two steps."""
        is_first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = is_first
        self.validation_is_due = False  # also where the recipe has none any more

    def _stop_if_told(self, trainer: lightning.Trainer) -> None:
        told = self.stop.agreed(trainer)
        if told is not None:
            self.save(trainer)
            self._finish()
            self.ranks.first(lambda: announce_exit(128 + told))
            raise Interrupted(told)

    def save(self, trainer: lightning.Trainer) -> None:
        """Begin to write the checkpoint of the step that was just finished, unless it is saved already.

        Raises:
            RunError: there is no room for it, or the one before could not be written.
        """
        step = trainer.global_step
        if step == self._saved_step:
            return
        if self._writing is not None:
            self._wait_for_the_one_before(step)
        began = time.monotonic()
        needed = self._bytes_of(trainer)
        self.ranks.first(lambda: self.store.require_room(needed))
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RecipeData)
        self._writing = Writing(self.ranks, self.store.new(step, self.identity, data.consumed(step)))
        self._writing.start(
            lambda: self._state(trainer),
            lambda checkpoint, folder: trainer.strategy.save_checkpoint(checkpoint, folder / STATE_NAME),
            in_background=self.config.background,
        )
        self._saved_step = step
        self.seconds += time.monotonic() - began
        if not self.config.background:
            self._finish()

    def _state(self, trainer: lightning.Trainer) -> dict[str, Any] | None:
        """What this rank writes; None for nothing."""
        # Not `trainer.save_checkpoint`, which ends in a barrier: a rank that cannot write never gets there.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        return checkpoint if self.ranks.is_first or isinstance(trainer.strategy, ShardedState) else None

    def _finish_if_written(self, trainer: lightning.Trainer) -> None:
        """Make the checkpoint visible that all ranks have written."""
        if self._writing is not None and trainer.strategy.reduce_boolean_decision(self._writing.is_written(), all=True):
            self._finish()

    def _finish(self) -> None:
        """Wait until the checkpoint that is being written is complete."""
        writing, self._writing = self._writing, None
        if writing is not None:
            began = time.monotonic()
            writing.finish()
            self.ranks.first(lambda: self.store.prune(self.config))
            self.seconds += time.monotonic() - began

    def _wait_for_the_one_before(self, step: int) -> None:
        before = self.seconds
        self._finish()
        if not self._is_slow_disk_known and self.seconds - before > _NOTICEABLE_SECONDS:
            self._is_slow_disk_known = True
            _LOGGER.warning(
                "step %d waited %.0f s for the checkpoint before it: writing one takes longer than checkpoint.every "
                "(%s) steps.",
                step,
                self.seconds - before,
                self.config.every,
            )

    def _bytes_of(self, trainer: lightning.Trainer) -> int:
        """Size of the checkpoint, for rank 0."""
        if isinstance(trainer.strategy, ShardedState):
            return sum(self.ranks.collect(trainer.strategy.own_bytes()))
        return state_bytes(trainer.lightning_module, trainer.optimizers)
