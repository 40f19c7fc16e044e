"""Documents kept for validation: chosen by their text, so that a copy of one is never trained on."""

import hashlib
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.mixture import Mixture
from dla_data.streams.parts import StreamParts
from dla_data.streams.source import ShardedText
from dla_data.streams.token_stream import EndOfText, StreamState, TokenStream

_PERSON = b"dla_data"  # of this use of the hash: the same texts are held out in every run


class HeldOut:
    """Tells the texts of the validation part from the others.

    Args:
        share: of the documents, above 0 and below 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, text: str) -> bool:
        """Whether `text` is held out."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64

    def trained_on(self, text: str) -> bool:
        """Whether it is not."""
        return not self(text)


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
