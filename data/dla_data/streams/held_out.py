"""Windows over the documents that streams keep for validation."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.mixture import Mixture
from dla_data.streams.parts import StreamParts
from dla_data.streams.source import ShardedText
from dla_data.streams.token_stream import EndOfText, StreamState, TokenStream


def held_out_windows(
    sources: Sequence[ShardedText],
    weights: Sequence[float],
    tokenizer: Tokenizer,
    held_out: HeldOut,
    *,
    window: int,
    count: int,
) -> list[torch.Tensor]:
    """The first windows of the held-out documents, each int64 [window + 1], shared among the sources by weight.

    The shards of every source are read whole, one after another in an order of their own, until there are enough.

    Raises:
        DataError: one has too little held-out text for a window, or cannot be read.
    """
    found: list[torch.Tensor] = []
    for source, wanted in zip(sources, Mixture(weights, streams=1).counts(count).tolist(), strict=True):
        parts = StreamParts(source.shards, streams=1, seed=0)
        stream = TokenStream(source, parts, 0, tokenizer, StreamState(), wanted=held_out, repeat=False)
        for number in range(wanted):
            try:
                found.append(torch.from_numpy(stream.take(window)))
            except EndOfText as error:
                if number:
                    break
                raise DataError(
                    f"{source.name}: its held-out documents (a share of {held_out.share}) do not fill one window of "
                    f"{window:,} tokens. Hold out a larger share, use a shorter window, or give more text."
                ) from error
    return found
