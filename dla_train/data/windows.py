"""Packed windows over a corpus from the cache."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dla_data.prepare import PreparedCorpus
from dla_data.windows import PackedWindows
from dla_train.data.config import StdlibData, TextData
from dla_train.data.fingerprints import VALIDATION_TEXT
from dla_train.data.ordered import NoWindows, OrderedSource, OrderedWindows
from dla_train.training.config import TrainingConfig


class WindowsDataModule(OrderedWindows):
    """Batches of windows `[micro_batch, window + 1]` int64: `[:, :-1]` are the inputs and `[:, 1:]` the targets.

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
        validation = PackedWindows(corpus.validation, config.window) if training.validates else NoWindows()
        train = PackedWindows(corpus.train, config.window)
        source = OrderedSource(train, validation, validation, corpus.validation, config.window)
        super().__init__([source], training, seed=seed, workers=config.workers)
        self.corpus = corpus

    @property
    def tokenizer_path(self) -> Path:
        return self.corpus.tokenizer_path

    @property
    def fingerprints(self) -> Mapping[str, str]:
        manifest = self.corpus.train.manifest
        validated = self.corpus.validation.manifest
        return {
            "tokenizer": manifest.tokenizer,
            "training text": manifest.files["tokens.bin"].sha256,
            VALIDATION_TEXT: validated.files["tokens.bin"].sha256,
        }

    @property
    def extent(self) -> str:
        return f"{self.corpus.train.tokens:,} training tokens"

    def tokens_to_count(self) -> npt.NDArray[np.int64]:
        """All training tokens."""
        return self.corpus.train.read(0, self.corpus.train.tokens)
