"""Text tokenized while training, as a LightningDataModule that keeps the positions of its streams."""

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.mixture import Mixture
from dla_data.readers import Source
from dla_data.streams.batches import StreamBatches
from dla_data.streams.held_out import held_out_windows
from dla_data.streams.positions import StreamPositions
from dla_data.streams.reader_text import ReaderText
from dla_data.streams.share import Share
from dla_data.streams.windows import StreamedSource, StreamedText
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint, vocabulary_of
from dla_train.data.recipe_data import RecipeData, Windows
from dla_train.data.revisions import version_fingerprints
from dla_train.data.streaming_config import StreamingData
from dla_train.training.config import TrainingConfig

_LOGGER = logging.getLogger(__name__)


class StreamingDataModule(RecipeData):
    """Batches of windows `[micro_batch, window + 1]` int64: `[:, :-1]` are the inputs and `[:, 1:]` the targets.

    A checkpoint holds a few integers for each stream, gathered from all ranks, so that any number of ranks may continue
    from it. It does not rely on the loader's state: Lightning keeps only that of rank 0, and counts what workers have
    read ahead as trained on.

    Args:
        config: sources, tokenizer, window. training: batch sizes, steps, validation windows. seed: of the order.
        revisions: commits of hub data sets to read, by source, whatever the recipe's revisions stand for now.
    Raises:
        DataError: the tokenizer, a source or the weights cannot be used, or there is too little text to validate on.
    """

    def __init__(
        self, config: StreamingData, training: TrainingConfig, seed: int, revisions: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        began = time.monotonic()
        self.config = config
        self.training = training
        self.curriculum = config.curriculum
        tokenizer = load_tokenizer(config.tokenizer)
        if (needed := vocabulary_of(tokenizer)) > config.vocab_size:
            raise DataError(
                f"the tokenizer {config.tokenizer} has ids up to {needed - 1:,}, but the vocabulary is set to "
                f"{config.vocab_size:,}. Set at least {needed}, or give the right tokenizer."
            )
        self._tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        sources = dict(sorted(config.sources.items()))  # their order in the recipe must not matter
        self._texts = [
            ReaderText(
                name,
                Source(path=one.path, text_field=one.text_field, config=one.config, split=one.split)
                .at((revisions or {}).get(name))
                .readers(),
                config.streams,
                one.skip_bad,
            )
            for name, one in sources.items()
        ]
        for text in self._texts:
            if text.version is not None and text.version.revision is not None:
                again = ", as at the start" if text.name in (revisions or {}) else ""
                path, commit = sources[text.name].path, text.version.revision
                _LOGGER.info("data.sources.%s: %s, commit %s%s", text.name, path, commit, again)
        weights = [one.weight for one in sources.values()]
        held_out = HeldOut(config.held_out)
        self.text = StreamedText(
            [
                StreamedSource(text=text, weight=one.weight, repeat=one.at_end == "repeat")
                for text, one in zip(self._texts, sources.values(), strict=True)
            ],
            tokenizer,
            window=config.window,
            streams=config.streams,
            seed=seed,
            wanted=held_out.trained_on,
        )
        self.positions = StreamPositions(len(weights), config.streams)
        self._begins_anew = False
        assert training.validation_windows is not None
        self._validation_windows = held_out_windows(
            [text.uncut() for text in self._texts],
            weights,
            tokenizer,
            held_out,
            window=config.window,
            count=training.validation_windows,
        )
        _LOGGER.info("opened the text and read the validation windows in %.1f s", time.monotonic() - began)

    @property
    def tokenizer_path(self) -> Path:
        return Path(self.config.tokenizer)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        texts = {f"text of data.sources.{text.name}": text.fingerprint() for text in self._texts}
        versions = (version_fingerprints(text.name, text.version) for text in self._texts)
        return {"tokenizer": self._tokenizer_fingerprint, **dict(chain.from_iterable(versions)), **texts}

    @property
    def extent(self) -> str:
        files = sum(text.files for text in self._texts)
        sizes = [text.bytes for text in self._texts]
        size = "" if None in sizes else f" ({sum(filter(None, sizes)) / 1e6:,.1f} MB)"
        return f"streaming from {counted(files, 'file')}{size} of {', '.join(self.config.sources)}"

    @property
    def window(self) -> int:
        return self.config.window

    @property
    def validation_windows(self) -> Windows:
        return self._validation_windows

    @property
    def sources_not_validated(self) -> Sequence[str]:
        """See `RecipeData`."""
        weights = [source.weight for source in self.text.sources]
        shares = Mixture(weights, streams=1).counts(self.training.validation_windows or 0).tolist()
        return [text.name for text, count in zip(self._texts, shares, strict=True) if not count]

    def windows_by_source(self, windows: int) -> dict[str, int]:
        """See `RecipeData`."""
        if len(self._texts) == 1:
            return {}
        counts = self.text.mixture.counts(windows)
        return {text.name: count for text, count in zip(self._texts, counts.tolist(), strict=True)}

    def train_dataloader(self) -> StreamBatches:
        """The micro-batches from the trainer's step to the last one.

        Raises:
            DataError: the streams cannot be divided among so many ranks and workers, or the checkpoint has no
                positions.
        """
        assert self.trainer is not None
        step = self.trainer.global_step
        self.positions.at(step, range(0))
        return StreamBatches(
            self.text,
            self._share(),
            self.positions,
            micro_batch=self.training.micro_batch,
            windows_before=self.windows_before(step),
            first_step=step,
            last_step=max(step, self.training.steps),
            pin_memory=self.pins_memory,
        )

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        """This rank's share of the validation windows, always the same ones in the same order."""
        return DataLoader(
            self._validation_windows,  # type: ignore[arg-type]
            batch_sampler=self.validation_share.batches,
            pin_memory=self.pins_memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """The positions of all streams at the trainer's step; every rank must call it, and all get the same result."""
        assert self.trainer is not None
        step = self.trainer.global_step
        own = self.positions.at(step, self._share().owned_streams())
        if self.trainer.world_size == 1:
            return {"step": step, "streams": own}
        gathered: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(gathered, own)
        return {"step": step, "streams": {stream: states for each in gathered for stream, states in each.items()}}

    def begin_anew(self, step: int) -> str:
        """See `RecipeData`; saved positions are ignored, because they name files and bytes of the other text."""
        self._begins_anew = True
        self.positions.begin(step)
        return "every stream begins with its first document"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the positions that `state_dict` returned, on any number of ranks."""
        if self._begins_anew:
            return
        self.positions.restore(state_dict["step"], state_dict["streams"])

    def _share(self) -> Share:
        assert self.trainer is not None
        return Share(
            streams=self.config.streams,
            global_batch=self.training.global_batch,
            rank=self.reader,
            world_size=self.readers,
            workers=self.config.workers,
        )
