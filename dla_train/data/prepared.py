"""Windows over shards of tokens that `dla-train prepare` made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.separate_windows import SeparateWindows, lay_in_a_row
from dla_data.shards.prepared import PreparedTokens
from dla_data.windows import PackedWindows
from dla_train.data.fingerprints import VALIDATION_TEXT
from dla_train.data.ordered import NoWindows, OrderedSource, OrderedWindows
from dla_train.data.prepared_config import PreparedData
from dla_train.data.validated_text import validated_and_trained_on
from dla_train.training.config import TrainingConfig

# Counting bigrams of more tokens takes seconds and gigabytes, and hardly changes the yardstick.
_MOST_COUNTED = 50_000_000


class PreparedDataModule(OrderedWindows):
    """Batches of windows `[micro_batch, window + 1]` int64: `[:, :-1]` are the inputs and `[:, 1:]` the targets. If
    documents are kept apart, a batch is a `SeparateBatch`, which adds where they begin.

    Args:
        tokens: of the recipe's folders, by the names in `config.folders`. config, training: sections of the recipe.
        seed: of the order.
    Raises:
        DataError: a part is shorter than one window, or the recipe validates and there are no documents for it.
    """

    def __init__(
        self, tokens: Mapping[str, PreparedTokens], config: PreparedData, training: TrainingConfig, seed: int
    ) -> None:
        super().__init__(
            [_source(config, name, folder, training.validates) for name, folder in tokens.items()],
            training,
            seed=seed,
            workers=config.workers,
            collate=lay_in_a_row if config.documents == "separate" else None,
        )
        self.curriculum = config.curriculum
        self.tokens = tokens
        self._verify = config.verify
        self._first = next(iter(tokens.values()))

    @property
    def tokenizer_path(self) -> Path:
        return self._first.tokenizer_path

    @property
    def fingerprints(self) -> Mapping[str, str]:
        texts = {
            f"text of data.sources.{name}" if name else "training text": folder.fingerprint("train")
            for name, folder in self.tokens.items()
        }
        validated = {
            f"{VALIDATION_TEXT} of data.sources.{name}" if name else VALIDATION_TEXT: folder.fingerprint("validation")
            for name, folder in self.tokens.items()
        }
        return {"tokenizer": self._first.manifest.tokenizer, **texts, **validated}

    @property
    def extent(self) -> str:
        count = sum(folder.train.tokens for folder in self.tokens.values())
        shards = sum(len(folder.manifest.shards) for folder in self.tokens.values())
        names = f" of {', '.join(self.tokens)}" if len(self.tokens) > 1 else ""
        return f"{count:,} training tokens in {counted(shards, 'shard')}{names}"

    @property
    def validated_and_trained_on(self) -> Sequence[str]:
        """See `RecipeData`."""
        return list(validated_and_trained_on(self.tokens)) if self.training.validates else []

    def verify_validation(self) -> None:
        """See `RecipeData`."""
        for folder in self.tokens.values() if self._verify else ():
            folder.verify(("validation",))

    def tokens_to_count(self) -> npt.NDArray[np.int64] | None:
        """All training tokens, if they are not too many and of one source; concatenated sources are not their
        mixture."""
        count = self._first.train.tokens
        return self._first.train.read(0, count) if count <= _MOST_COUNTED and len(self.tokens) == 1 else None


def open_prepared(config: PreparedData, verify: bool = True) -> dict[str, PreparedTokens]:
    """The tokens of `config.folders`, by name.

    Args:
        config: where they are. verify: false compares only sizes, whatever `config.verify` says.

    Raises:
        DataError: a folder is unfinished or damaged, has another tokenizer than the configured one or the first
            folder's, or has ids beyond `vocab_size`.
    """
    opened: dict[str, PreparedTokens] = {}
    for name, source in config.folders.items():
        opened[name] = tokens = PreparedTokens.open(Path(source.path), verify=config.verify and verify)
        first = next(iter(opened.values()))
        wanted = first.tokenizer_path if config.tokenizer is None else Path(config.tokenizer)
        tokens.require_tokenizer(wanted)
        if tokens.manifest.vocab_size > config.vocab_size:
            raise DataError(
                f"the tokens in {source.path} have ids up to {tokens.manifest.vocab_size - 1:,}, but the vocabulary is "
                f"set to {config.vocab_size:,}. Set at least {tokens.manifest.vocab_size}."
            )
    return opened


def _source(config: PreparedData, name: str, tokens: PreparedTokens, validates: bool) -> OrderedSource:
    if validates and not tokens.validation.tokens:
        raise DataError(
            f"{tokens.path} has no documents for validation. Prepare the text again, in another folder, with a larger "
            "--validation-share, or train without validation: training.validation_windows=0 "
            "training.validate_every=null."
        )
    cut = SeparateWindows if config.documents == "separate" else PackedWindows
    return OrderedSource(
        cut(tokens.train, config.window),
        cut(tokens.validation, config.window) if validates else NoWindows(),
        PackedWindows(tokens.validation, config.window) if validates else NoWindows(),
        tokens.validation,
        config.window,
        name,
        config.folders[name].weight,
    )
