"""One rank's windows in order, made in this process or by the workers of a `DataLoader`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from dla_data.errors import DataError
from dla_data.mixture import Mixture
from dla_data.streams.parts import StreamParts
from dla_data.streams.positions import StreamPositions
from dla_data.streams.share import Share
from dla_data.streams.source import ShardedText
from dla_data.streams.token_stream import StreamState, TokenStream, every_text


@dataclass(frozen=True, kw_only=True)
class StreamedSource:
    """A source and its role in the mixture.

    Attributes:
        text: the documents. weight: its share of the tokens, beside the others'. repeat: whether it begins again at its
            end; otherwise its end is an error.
    """

    text: ShardedText
    weight: float = 1.0
    repeat: bool = True


class StreamedText:
    """Everything that decides the windows of a run.

    Args:
        sources: at least one. tokenizer: for all of them. window: tokens predicted per window. streams: how many
            sequences the text is dealt out to. seed: of the order of the shards.
        wanted: which texts are used at all.

    Raises:
        DataError: weights or numbers out of range, or a tokenizer without the end-of-document token.
    """

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        tokenizer: Tokenizer,
        *,
        window: int,
        streams: int,
        seed: int,
        wanted: Callable[[str], bool] = every_text,
    ) -> None:
        if window < 1:
            raise DataError(f"a window of {window} tokens is impossible: it must be at least 1.")
        self.sources = tuple(sources)
        self.tokenizer = tokenizer
        self.window = window
        self.streams = streams
        self.mixture = Mixture([source.weight for source in sources], streams)
        self.wanted = wanted
        self._parts = [StreamParts(source.text.shards, streams, seed) for source in sources]

    def stream(self, stream: int, source: int, state: StreamState) -> TokenStream:
        """Stream number `stream` of one source, from `state`."""
        return TokenStream(
            self.sources[source].text,
            self._parts[source],
            stream,
            self.tokenizer,
            state,
            wanted=self.wanted,
            repeat=self.sources[source].repeat,
        )


class StreamedWindow(NamedTuple):
    """A window and what it did to its stream.

    tokens: int64 [window + 1], inputs `[:-1]` and targets `[1:]`. stream, source: where it comes from. state: of that
    stream of that source after it.
    """

    tokens: torch.Tensor
    stream: int
    source: int
    state: StreamState


class StreamWindows(IterableDataset):
    """The windows of one rank, for `DataLoader(batch_size=None, num_workers=share.workers)`.

    An error comes as an item rather than being raised, because a `DataLoader` would wrap it in its worker's traceback:
    see `dla_data.errors.raise_or_return`.

    Args:
        text: what is read. share: of this rank. positions: where the streams stand. first, last: numbers of this rank's
            windows, `last` exclusive.
    """

    def __init__(self, text: StreamedText, share: Share, positions: StreamPositions, first: int, last: int) -> None:
        super().__init__()
        self.text = text
        self.share = share
        self.positions = positions
        self.first = first
        self.last = last

    def __iter__(self) -> Iterator[StreamedWindow | DataError]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        opened: dict[tuple[int, int], TokenStream] = {}
        for own in range(self.first + number, self.last, count):
            window = self.share.window(own)
            key = stream, source = window % self.text.streams, self.text.mixture.source(window)
            try:
                if key not in opened:
                    opened[key] = self.text.stream(stream, source, self.positions.now(stream, source))
                tokens = torch.from_numpy(opened[key].take(self.text.window))
            except DataError as error:
                yield error
                return
            yield StreamedWindow(tokens, stream, source, opened[key].state)
