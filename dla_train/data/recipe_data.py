"""The interface of a run to its data, the same for every kind of `data` section."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import numpy.typing as npt
import torch

from dla_data.errors import DataError
from dla_data.separate_windows import SeparateBatch
from dla_data.synthetic import Examples
from dla_kernels.documents import cu_seqlens_of
from dla_train.data.consumed import Consumed
from dla_train.data.curriculum import CurriculumConfig
from dla_train.data.cutting import cut_batch
from dla_train.data.validation_share import ValidationShare
from dla_train.training.config import TrainingConfig

_LOGGER = logging.getLogger(__name__)


class Windows(Protocol):
    """Windows by number: int64 [window + 1], or `Examples` if only answers count."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> "torch.Tensor | Examples": ...


class RecipeData(lightning.LightningDataModule, ABC):
    """Batches for the trainer, and what is logged and saved about them.

    Attributes:
        training: batch sizes and steps.
        begun: what was read before this start, as the checkpoint that training continues from says.
        curriculum: shorter training windows at first; None has full windows from the first step on.
        context_parallel: how many neighbouring ranks share each window, and so read the same.
    """

    training: TrainingConfig
    begun: Consumed = Consumed()
    curriculum: CurriculumConfig | None = None
    context_parallel: int = 1
    _said_window: int | None = -1  # the window length logged last; -1: none yet, None: full windows

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path | None:
        """The tokenizer that makes the tokens; the run folder keeps a copy. None if tokens are not text."""

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """What must not change between a stop of the run and its continuation, by the name used in messages. What
        begins as `fingerprints.VALIDATION_TEXT` may change, and the run then says so."""

    @property
    @abstractmethod
    def extent(self) -> str:
        """How much there is to train on, as the beginning of a log line."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Tokens predicted in a training window, before any curriculum."""

    @property
    @abstractmethod
    def validation_windows(self) -> Windows:
        """The windows that validation reads."""

    def validation_tokens(self, at_most: int) -> npt.NDArray[np.int64]:
        """Up to `at_most` tokens from the beginning of the validation text, in one piece; not for data with answers.

        Raises:
            DataError: the run reads no validation text.
        """
        if not len(self.validation_windows):
            raise DataError("training.validation_windows is 0: the run reads no such text.")
        window = len(self.validation_windows[0]) - 1
        count = min(len(self.validation_windows), -(-at_most // window))
        pieces = [np.asarray(self.validation_windows[number]) for number in range(count)]
        # The last token of a window is the first of the next one.
        return np.concatenate([*(piece[:-1] for piece in pieces[:-1]), pieces[-1]])[:at_most]

    def verify_validation(self) -> None:
        """Compare the validation text with its checksums where there are any, unless the recipe says not to.

        Raises:
            DataError: it is damaged.
        """

    @property
    def has_answers(self) -> bool:
        """Whether batches are `Examples`; validation then measures the share of correct answers."""
        return False

    @property
    def readers(self) -> int:
        """Among how many the windows of a step are divided: ranks, or groups of ranks that share windows."""
        assert self.trainer is not None
        return self.trainer.world_size // self.context_parallel

    @property
    def reader(self) -> int:
        """The number of this rank, or of its group, among `readers`."""
        assert self.trainer is not None
        return self.trainer.global_rank // self.context_parallel

    @property
    def pins_memory(self) -> bool:
        """Whether batches go to a GPU. Without one, pinning would open it for nothing."""
        return self.training.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def validation_share(self) -> ValidationShare:
        """Which of the validation windows this rank reads."""
        return ValidationShare(len(self.validation_windows), self.training.micro_batch, self.reader, self.readers)

    @property
    def sources_not_validated(self) -> Sequence[str]:
        """The sources that get none of the recipe's validation windows, because their weights are small."""
        return ()

    @property
    def validated_and_trained_on(self) -> Sequence[str]:
        """Sentences about sources that train on what others validate, as far as that is known."""
        return ()

    def begin_anew(self, step: int) -> str:
        """Continue after `step` steps from a checkpoint of other data, or of another order, whose position means
        nothing here; returns, for the log, where reading begins."""
        return f"the windows are those of the new order from number {self.windows_before(step) + 1:,} on"

    def windows_before(self, step: int) -> int:
        """Number of windows that the first `step` steps read, over all ranks."""
        return self.begun.windows + (step - self.begun.step) * self.training.global_batch

    def consumed(self, step: int) -> Consumed:
        """What the first `step` steps read."""
        windows = self.windows_before(step)
        tokens = self.begun.tokens + (windows - self.begun.windows) * self.window
        before, by_source = self.windows_by_source(self.begun.windows), dict(self.begun.by_source)
        for name, count in self.windows_by_source(windows).items():
            by_source[name] = by_source.get(name, 0) + (count - before[name]) * self.window
        return Consumed(step=step, windows=windows, tokens=tokens, by_source=by_source)

    def answers_of_step(self, step: int) -> int:
        """Number of answers in the `Examples` of optimizer step `step` (from 0), over all micro-batches and ranks."""
        raise NotImplementedError(f"{type(self).__name__} has no answers")

    def epochs(self, windows: int) -> float | None:
        """How often `windows` training windows go through the text; None if its length is not known."""
        return None

    def epochs_by_source(self, windows: int) -> dict[str, float]:
        """How often the order's first `windows` windows go through each source; empty if there is only one, or if their
        lengths are not known."""
        return {}

    def windows_by_source(self, windows: int) -> dict[str, int]:
        """How many of the order's first `windows` windows come from each source; empty if there is only one."""
        return {}

    def window_at(self, step: int) -> int | None:
        """Length of the training windows of optimizer step `step` (from 0); None if they have their full length."""
        return None if self.curriculum is None else self.curriculum.window_at(step)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; the host remembers where documents begin, and need not wait for the GPU to learn it."""
        if not isinstance(batch, SeparateBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        tokens = super().transfer_batch_to_device(batch.tokens, device, dataloader_idx)
        return SeparateBatch(tokens, cu_seqlens_of(batch.cu_seqlens.tolist(), device))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Cut training windows to the length of the step's phase."""
        if self.curriculum is None or self.trainer is None or not self.trainer.training:
            return batch
        step = self.trainer.global_step
        length = self.window_at(step)
        if self._said_window != length:
            whole = batch.tokens if isinstance(batch, SeparateBatch) else batch
            _LOGGER.info("windows of %s tokens from step %d on", f"{length or whole.shape[1] - 1:,}", step + 1)
            self._said_window = length
        return batch if length is None else cut_batch(batch, length)

    def tokens_to_count(self) -> npt.NDArray[np.int64] | None:
        """Training tokens to fit a bigram model to, as a yardstick; None if there are too many to hold in memory."""
        return None
