"""Windows by number as a LightningDataModule; the training order is a function of the step alone."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from dla_data.batches import Order, StepBatches
from dla_data.errors import DataError
from dla_data.mixed_order import MixedOrder
from dla_data.mixture import Mixture
from dla_data.windows import TokenSource
from dla_train.data.plain_errors import ErrorsAsItems, OrError, PlainErrorLoader
from dla_train.data.recipe_data import RecipeData, Windows
from dla_train.training.config import TrainingConfig


class OrderedSource(NamedTuple):
    """One text, cut into windows.

    train, validation: windows by number. plain_validation: the windows of `validation`, as tokens alone. text: the text
    that the validation windows are cut from. window: tokens predicted per window. name: for messages. weight: its share
    of the windows, relative to the other sources' weights.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    plain_validation: Dataset[torch.Tensor]
    text: TokenSource
    window: int
    name: str = ""
    weight: float = 1.0


class NoWindows(Dataset[Any]):
    """The validation windows of a run without validation, whose data need not have validation text."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(f"window {index} of 0")


class OrderedWindows(RecipeData):
    """Batches of windows in the order of `MixedOrder`, the same for any number of ranks and workers.

    There is no loader state to save: the training loader begins at the trainer's global step, which the checkpoint
    restored.

    Args:
        sources: at least one. training: batch sizes, steps, and how many validation windows, shared among the sources
            by weight.
        seed: of the order. workers: processes that read ahead. collate: makes a batch of windows; None stacks tensors.
    Raises:
        DataError: the weights cannot be met.
    """

    def __init__(
        self,
        sources: Sequence[OrderedSource],
        training: TrainingConfig,
        *,
        seed: int,
        workers: int,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.training = training
        self.sources = sources
        self.train_windows = _in_a_row(source.train for source in sources)
        sizes = [len(source.train) for source in sources]  # type: ignore[arg-type]
        self.order = MixedOrder(sizes, [source.weight for source in sources], seed)
        chosen = self._validation_indices()
        self._validation = Subset(_in_a_row(source.validation for source in sources), chosen)
        self._plain_validation = Subset(_in_a_row(source.plain_validation for source in sources), chosen)
        self._workers = workers
        self._collate = collate

    @property
    def window(self) -> int:
        return self.sources[0].window

    @property
    def validation_windows(self) -> Windows:
        return self._plain_validation

    def validation_tokens(self, at_most: int) -> npt.NDArray[np.int64]:
        """See `RecipeData`; taken from all the validation text, even if the run reads only a few windows of it."""
        texts = [source.text for source in self.sources]
        if not any(text.tokens for text in texts):
            raise DataError(f"there are no tokens in {', '.join(map(str, texts))}.")
        counts = self._shares(at_most)
        return np.concatenate(
            [text.read(0, min(count, text.tokens)) for text, count in zip(texts, counts, strict=True)]
        )

    @property
    def sources_not_validated(self) -> Sequence[str]:
        """See `RecipeData`."""
        shares = self._shares(self.training.validation_windows or 0)
        return [source.name for source, count in zip(self.sources, shares, strict=True) if not count]

    def epochs(self, windows: int) -> float | None:
        """One epoch holds every training window once; None for several sources, which each have their own epochs."""
        return windows / self.order.window_count if len(self.sources) == 1 else None

    def epochs_by_source(self, windows: int) -> dict[str, float]:
        """See `RecipeData`."""
        counts = self.windows_by_source(windows)
        sizes = {source.name: len(source.train) for source in self.sources}  # type: ignore[arg-type]
        return {name: count / sizes[name] for name, count in counts.items()}

    def windows_by_source(self, windows: int) -> dict[str, int]:
        """See `RecipeData`."""
        if len(self.sources) == 1:
            return {}
        counts = self.order.mixture.counts(windows).tolist()
        return {source.name: count for source, count in zip(self.sources, counts, strict=True)}

    def train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches from the trainer's step to the last one.

        The loader has a known length, so that Lightning does not prefetch a batch.
        """
        steps = step_batches(self, self.order)
        return self._loader(self.train_windows, batch_sampler=steps)

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the validation windows, always the same ones in the same order."""
        return self._loader(self._validation, batch_sampler=self.validation_share.batches)

    def _shares(self, count: int) -> list[int]:
        """`count` validation windows (or tokens), divided among the sources by weight."""
        return Mixture([source.weight for source in self.sources], streams=1).counts(count).tolist()

    def _validation_indices(self) -> list[int]:
        """The validation windows that are read, by their number among those of all sources."""
        sizes = [len(source.plain_validation) for source in self.sources]  # type: ignore[arg-type]
        wanted = self.training.validation_windows
        counts = [None] * len(sizes) if wanted is None else self._shares(wanted)
        chosen, begin = [], 0
        for size, count in zip(sizes, counts, strict=True):
            chosen += [begin + index for index in _evenly_spread(size, count)]
            begin += size
        return chosen

    def _loader(self, windows: Dataset[Any], **batches: Any) -> DataLoader[Any]:
        return PlainErrorLoader(
            ErrorsAsItems(windows),
            num_workers=self._workers,
            worker_init_fn=ignore_interrupts,
            collate_fn=OrError(self._collate),
            persistent_workers=False,
            pin_memory=self.pins_memory,
            **batches,
        )


def step_batches(data: RecipeData, order: Order) -> StepBatches:
    """The batches of this rank from the trainer's step to the last one."""
    training, trainer = data.training, data.trainer
    assert trainer is not None
    return StepBatches(
        windows=order.window_count,
        order=order,
        global_batch=training.global_batch,
        micro_batch=training.micro_batch,
        rank=data.reader,
        world_size=data.readers,
        accumulate=trainer.accumulate_grad_batches,
        first_step=trainer.global_step,
        windows_before=data.windows_before(trainer.global_step),
        last_step=max(trainer.global_step, training.steps),
    )


def _evenly_spread(windows: int, count: int | None) -> list[int]:
    """Indices of `count` windows at equal distances, because the first ones would cover only a few documents."""
    chosen = windows if count is None else min(count, windows)
    return [index * windows // chosen for index in range(chosen)]


def _in_a_row(parts: Iterator[Dataset[Any]]) -> Dataset[Any]:
    """The data sets one after another."""
    first, *others = parts
    return ConcatDataset([first, *others]) if others else first


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in a worker: it goes to every process of the terminal, but the trainer decides when its workers
    end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
