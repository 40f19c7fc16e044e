"""Packed windows as a LightningDataModule; the training order is a function of the step alone."""

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Subset

from dla_data.batches import StepBatches
from dla_data.order import WindowOrder
from dla_data.prepare import PreparedCorpus
from dla_data.windows import PackedWindows
from dla_train.data.config import StdlibData, TextData
from dla_train.data.recipe_data import RecipeData, Windows
from dla_train.training.config import TrainingConfig


class WindowsDataModule(RecipeData):
    """Batches of windows `[micro_batch, window + 1]` int64: `[:, :-1]` are the inputs and `[:, 1:]` the targets.

    There is no loader state to save: the training loader begins at the trainer's global step, which the checkpoint
        restored.

    Args:
        corpus: the tokens.
        config: window length and workers.
        training: batch sizes, steps, and how many validation windows.
        seed: of the order.
    Raises:
        DataError: a part of the corpus is shorter than one window.
    """

    def __init__(
        self, corpus: PreparedCorpus, config: StdlibData | TextData, training: TrainingConfig, seed: int
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.config = config
        self.training = training
        self.train_windows = PackedWindows(corpus.train, config.window)
        self._validation_windows = _evenly_spread(
            PackedWindows(corpus.validation, config.window), training.validation_windows
        )
        self.order = WindowOrder(len(self.train_windows), seed)

    @property
    def tokenizer_path(self) -> Path:
        return self.corpus.tokenizer_path

    @property
    def fingerprints(self) -> Mapping[str, str]:
        manifest = self.corpus.train.manifest
        return {"tokenizer": manifest.tokenizer, "training text": manifest.files["tokens.bin"].sha256}

    @property
    def extent(self) -> str:
        return f"{self.corpus.train.tokens:,} training tokens"

    @property
    def validation_windows(self) -> Windows:
        return self._validation_windows

    def epochs(self, windows: int) -> float:
        """One epoch holds every training window once."""
        return windows / len(self.train_windows)

    def tokens_to_count(self) -> npt.NDArray[np.int64]:
        """All of them."""
        return self.corpus.train.read(0, self.corpus.train.tokens)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        """The micro-batches from the trainer's step to the last one.

        Its length is known, so Lightning does not read a batch ahead.
        """
        assert self.trainer is not None
        steps = StepBatches(
            windows=len(self.train_windows),
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

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        """The validation windows, always the same ones in the same order."""
        return self._loader(self._validation_windows, batch_size=self.training.micro_batch)

    def _loader(self, windows: "PackedWindows | Subset[torch.Tensor]", **batches: object) -> DataLoader[torch.Tensor]:
        return DataLoader(
            windows,
            num_workers=self.config.workers,
            worker_init_fn=ignore_interrupts,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            **batches,  # type: ignore[arg-type]
        )


def _evenly_spread(windows: PackedWindows, count: int | None) -> "Subset[torch.Tensor]":
    """`count` windows at equal distances: the first ones would be those of a few documents only."""
    chosen = len(windows) if count is None else min(count, len(windows))
    return Subset(windows, [index * len(windows) // chosen for index in range(chosen)])


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal; the trainer decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
