"""One endless sequence of tokens from one source, whose state is a few integers."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dla_data.end_of_document import end_of_document_id, require_no_end
from dla_data.errors import DataError
from dla_data.streams.parts import StreamParts
from dla_data.streams.source import Position, ShardedText
from dla_data.tokenizer import encode_pieces

# If documents are few, a stream may get no text in an epoch. Each epoch deals the parts out anew, so the chance to miss
# the only part with text this many times in a row is (1 - 1 / streams) ^ (28 streams), below 1e-12.
_EMPTY_EPOCHS_PER_STREAM = 28


def every_text(text: str) -> bool:
    """Accepts every text. A named function, because a lambda could not be sent to a worker."""
    return True


class EndOfText(DataError):
    """The end of a text that is not to be repeated."""


class StreamState(NamedTuple):
    """Where a stream stands: at its next token.

    epoch, part: of the stream's parts. document: its ordinal within the shard. position: the reader's, of that
    document; None only at the beginning of a part. character: where the piece of the document begins that holds the
    token. dropped: how many tokens of that piece lie before the token.
    """

    epoch: int = 0
    part: int = 0
    document: int = 0
    position: Position | None = None
    character: int = 0
    dropped: int = 0

    def plain(self) -> list[Any]:
        """For a checkpoint."""
        return list(self)

    @classmethod
    def from_plain(cls, values: list[Any]) -> "StreamState":
        """Read what `plain` gave.

        Raises:
            DataError: it is something else.
        """
        if len(values) != len(cls._fields) or not all(
            isinstance(value, int) and value >= 0
            for name, value in zip(cls._fields, values, strict=True)
            if name != "position"
        ):
            raise DataError(f"{values} is not the state of a stream ({', '.join(cls._fields)}).")
        return cls(*values)


class TokenStream:
    """The tokens of one stream of `source`: its documents, each followed by the end-of-document token, without end.

    Args:
        source: the text. parts: which part each stream reads. stream: this one's number.
        tokenizer: has the end-of-document token.
        state: where to begin.
        wanted: which texts belong to the stream at all; those held out for validation do not.
        repeat: whether the text begins again at its end; otherwise that is an error.
    Attributes:
        state: where the next window begins.
    """

    def __init__(
        self,
        source: ShardedText,
        parts: StreamParts,
        stream: int,
        tokenizer: Tokenizer,
        state: StreamState,
        *,
        wanted: Callable[[str], bool] = every_text,
        repeat: bool = True,
    ) -> None:
        self.state = state
        self._source = source
        self._parts = parts
        self._stream = stream
        self._tokenizer = tokenizer
        # Pickling loses this setting, and a worker that is not forked gets a pickled tokenizer.
        tokenizer.encode_special_tokens = True
        self._end_of_document = end_of_document_id(tokenizer)
        self._wanted = wanted
        self._repeat = repeat
        self._pieces = self._read(state)
        self._ready: deque[tuple[StreamState, npt.NDArray[np.uint32]]] = deque()
        self._ready_tokens = -state.dropped  # tokens in `_ready`, not counting those before `state`

    def take(self, window: int) -> npt.NDArray[np.int64]:
        """The next `window + 1` tokens, int64; the last one is the first of the next window too.

        Raises:
            EndOfText: the text ends and is not to be repeated.
            DataError: it has no documents for this stream, or cannot be read.
        """
        while self._ready_tokens < window + 1:
            state, ids = next(self._pieces)
            self._ready.append((state, ids))
            self._ready_tokens += ids.size
        # Slices are views, because a piece may be many windows long.
        first, last = self.state.dropped, self.state.dropped + window + 1
        parts, begin = [], 0
        for _, ids in self._ready:
            parts.append(ids[max(0, first - begin) : max(0, last - begin)])
            begin += ids.size
        tokens = np.concatenate(parts).astype(np.int64)
        dropped = self.state.dropped + window
        while dropped >= self._ready[0][1].size:
            dropped -= self._ready.popleft()[1].size
        self._ready_tokens -= window
        self.state = self._ready[0][0]._replace(dropped=dropped)
        return tokens

    def _read(self, start: StreamState) -> Iterator[tuple[StreamState, npt.NDArray[np.uint32]]]:
        """Every piece of text from the one that `start` lies in, as tokens, and the state at its first token."""
        empty_epochs = 0
        while True:
            has_text = False
            for state, text in self._epoch(start):
                has_text = True
                for character, ids, is_last in encode_pieces(self._tokenizer, text, state.character):
                    require_no_end(ids, self._end_of_document, f"{self._source.name}: a document")
                    whole = np.append(ids, np.uint32(self._end_of_document)) if is_last else ids
                    yield state._replace(character=character, dropped=0), whole
            empty_epochs = 0 if has_text else empty_epochs + 1
            if not self._repeat:
                raise EndOfText(
                    f"{self._source.name} is at its end for stream {self._stream} of {self._parts.streams}, and it is "
                    "not to be repeated. Train for fewer steps, deal it out to fewer streams (data.streams), let it "
                    "repeat, or give more text."
                )
            if empty_epochs == _EMPTY_EPOCHS_PER_STREAM * self._parts.streams:
                raise DataError(
                    f"{self._source.name} has no documents: stream {self._stream} of {self._parts.streams} found none "
                    f"in {empty_epochs} epochs. Give documents, or leave it out (those held out for validation do not "
                    "count)."
                )
            start = StreamState(epoch=start.epoch + 1)

    def _epoch(self, start: StreamState) -> Iterator[tuple[StreamState, str]]:
        """The documents of the stream from `start` to the end of its epoch."""
        while (part := self._parts.part(self._stream, start.epoch, start.part)) is not None:
            documents = self._source.documents(part.shard, start.position)
            for ordinal, (position, text) in enumerate(documents, start.document):
                if ordinal % self._parts.cut == part.remainder and text and self._wanted(text):
                    character = start.character if ordinal == start.document else 0
                    yield StreamState(start.epoch, start.part, ordinal, position, character), text
            start = StreamState(start.epoch, start.part + 1)
