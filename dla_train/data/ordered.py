"""Windows by number as a LightningDataModule; the training order is a function of the step alone."""

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from dla_data.batches import StepBatches
from dla_data.order import WindowOrder
from dla_data.windows import PackedWindows
from dla_train.data.recipe_data import RecipeData, Windows
from dla_train.training.config import TrainingConfig


class OrderedWindows(RecipeData):
    """Batches of windows in the order of `WindowOrder`: the same ones on any number of ranks and workers.

    There is no loader state to save: the training loader begins at the trainer's global step, which the checkpoint
    restored.

    Args:
        train, validation: windows by number. plain_validation: the same ones as tokens alone.
        training: batch sizes, steps, and how many validation windows.
        seed: of the order. workers: processes that read ahead. collate: makes a batch; None stacks tensors.
    """

    def __init__(
        self,
        train: Dataset[Any],
        validation: Dataset[Any],
        plain_validation: PackedWindows,
        training: TrainingConfig,
        *,
        seed: int,
        workers: int,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.training = training
        self.train_windows = train
        self.order = WindowOrder(len(train), seed)  # type: ignore[arg-type]
        chosen = _evenly_spread(len(plain_validation), training.validation_windows)
        self._validation = Subset(validation, chosen)
        self._plain_validation = Subset(plain_validation, chosen)
        self._validation_source = plain_validation.source
        self._workers = workers
        self._collate = collate

    @property
    def validation_windows(self) -> Windows:
        return self._plain_validation

    def validation_tokens(self, at_most: int) -> npt.NDArray[np.int64]:
        """See `RecipeData`: of all the validation text, however few windows the run reads of it."""
        return self._validation_source.read(0, min(at_most, self._validation_source.tokens))

    def epochs(self, windows: int) -> float:
        """One epoch holds every training window once."""
        return windows / self.order.window_count

    def train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches from the trainer's step to the last one.

        Its length is known, so Lightning does not read a batch ahead.
        """
        assert self.trainer is not None
        steps = StepBatches(
            windows=self.order.window_count,
            order=self.order,
            global_batch=self.training.global_batch,
            micro_batch=self.training.micro_batch,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            accumulate=self.trainer.accumulate_grad_batches,
            first_step=self.trainer.global_step,
            last_step=max(self.trainer.global_step, self.training.steps),
        )
        return self._loader(self.train_windows, batch_sampler=steps)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation windows, always the same ones in the same order."""
        return self._loader(self._validation, batch_size=self.training.micro_batch)

    def _loader(self, windows: Dataset[Any], **batches: Any) -> DataLoader[Any]:
        return DataLoader(
            windows,
            num_workers=self._workers,
            worker_init_fn=ignore_interrupts,
            collate_fn=self._collate,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            **batches,
        )


def _evenly_spread(windows: int, count: int | None) -> list[int]:
    """`count` windows at equal distances: the first ones would be those of a few documents only."""
    chosen = windows if count is None else min(count, windows)
    return [index * windows // chosen for index in range(chosen)]


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal; the trainer decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
