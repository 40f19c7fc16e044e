"""Shards of tokens that were prepared once, as windows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError
from dla_data.separate_windows import SeparateWindows, lay_in_a_row
from dla_data.shards.prepared import PreparedTokens
from dla_data.windows import PackedWindows
from dla_train.data.ordered import OrderedWindows
from dla_train.data.prepared_config import PreparedData
from dla_train.training.config import TrainingConfig

# A bigram model of more tokens takes seconds and gigabytes, for a yardstick that moves no more.
_MOST_COUNTED = 50_000_000


class PreparedDataModule(OrderedWindows):
    """Batches of windows `[micro_batch, window + 1]` int64, `[:, :-1]` the inputs and `[:, 1:]` the targets; where
    documents are kept apart, `SeparateBatch`, which adds where they begin.

    Args:
        tokens: of the recipe's folder. config, training: sections of the recipe. seed: of the order.
    Raises:
        DataError: a part is shorter than one window, or there is none for validation.
    """

    def __init__(self, tokens: PreparedTokens, config: PreparedData, training: TrainingConfig, seed: int) -> None:
        if not tokens.validation.tokens:
            raise DataError(
                f"{tokens.path} has no documents for validation. Prepare it again with a larger --validation-share."
            )
        plain = PackedWindows(tokens.validation, config.window)
        if config.documents == "separate":
            train = SeparateWindows(tokens.train, config.window)
            validation = SeparateWindows(tokens.validation, config.window)
        else:
            train, validation = PackedWindows(tokens.train, config.window), plain
        super().__init__(
            train,
            validation,
            plain,
            training,
            seed=seed,
            workers=config.workers,
            collate=lay_in_a_row if config.documents == "separate" else None,
        )
        self.tokens = tokens

    @property
    def tokenizer_path(self) -> Path:
        return self.tokens.tokenizer_path

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return {"tokenizer": self.tokens.manifest.tokenizer, "training text": self.tokens.fingerprint("train")}

    @property
    def extent(self) -> str:
        shards = len(self.tokens.manifest.shards)
        return f"{self.tokens.train.tokens:,} training tokens in {shards:,} shards"

    def tokens_to_count(self) -> npt.NDArray[np.int64] | None:
        """All of them, if they are not too many."""
        count = self.tokens.train.tokens
        return self.tokens.train.read(0, count) if count <= _MOST_COUNTED else None


def open_prepared(config: PreparedData) -> PreparedTokens:
    """The tokens of `config`.

    Raises:
        DataError: no finished folder, damaged, another tokenizer than asked for, or ids beyond `vocab_size`.
    """
    tokens = PreparedTokens.open(Path(config.path), verify=config.verify)
    if config.tokenizer is not None:
        tokens.require_tokenizer(Path(config.tokenizer))
    if tokens.manifest.vocab_size > config.vocab_size:
        raise DataError(
            f"the tokens in {config.path} have ids up to {tokens.manifest.vocab_size - 1:,}, but the vocabulary is set "
            f"to {config.vocab_size:,}. Set at least {tokens.manifest.vocab_size}."
        )
    return tokens
