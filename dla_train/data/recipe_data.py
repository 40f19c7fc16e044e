"""What a run needs of its data, whatever the `data` section's kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import lightning
import numpy as np
import numpy.typing as npt
import torch

from dla_data.synthetic import Examples


class Windows(Protocol):
    """Windows by number: int64 [window + 1], or `Examples` where only answers count."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> "torch.Tensor | Examples": ...


class RecipeData(lightning.LightningDataModule, ABC):
    """Batches for the trainer, and what is said and kept of them."""

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path | None:
        """The tokenizer that makes the tokens; the run folder keeps a copy. None where tokens are no text."""

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """What must stay equal while a run is stopped, by the name that a message gives it."""

    @property
    @abstractmethod
    def extent(self) -> str:
        """How much there is to train on, as the first words of a line of the log."""

    @property
    @abstractmethod
    def validation_windows(self) -> Windows:
        """What validation reads."""

    @property
    def has_answers(self) -> bool:
        """Whether batches are `Examples`, of which validation measures how many answers are right."""
        return False

    def epochs(self, windows: int) -> float | None:
        """How often `windows` training windows go through the text; None where its length is not known."""
        return None

    def tokens_by_source(self, steps: int) -> dict[str, int]:
        """How many tokens of each source the first `steps` steps hold; empty where there is only one source."""
        return {}

    def tokens_to_count(self) -> npt.NDArray[np.int64] | None:
        """Training tokens to fit a bigram model to, as a yardstick; None where there are too many to hold in memory."""
        return None
