"""What a batch of any kind of data means for the model."""

from typing import NamedTuple

from torch import Tensor

from dla_data.separate_windows import SeparateBatch
from dla_data.synthetic import Examples

Batch = Tensor | Examples | SeparateBatch


class ModelInputs(NamedTuple):
    """inputs, targets: `[B, T]` int64, -100 does not count.

    cu_seqlens: `[documents + 1]` where documents are kept apart (B is 1), else None.
    """

    inputs: Tensor
    targets: Tensor
    cu_seqlens: Tensor | None


class FirstWindow(NamedTuple):
    """tokens: what the model reads. ends: where the documents end that it keeps apart, the last one with the tokens."""

    tokens: list[int]
    ends: list[int]


def model_inputs(batch: Batch) -> ModelInputs:
    """Windows `[B, window + 1]` are inputs but for the last token and targets but for the first."""
    if isinstance(batch, Examples):
        return ModelInputs(*batch, None)
    if isinstance(batch, SeparateBatch):
        return ModelInputs(batch.tokens[:, :-1].reshape(1, -1), batch.tokens[:, 1:].reshape(1, -1), batch.cu_seqlens)
    return ModelInputs(batch[:, :-1], batch[:, 1:], None)


def first_window(batch: Batch, most: int) -> FirstWindow:
    """What the model reads of a batch's first window, `most` tokens of it at most."""
    inputs, _, cu_seqlens = model_inputs(batch)
    window = batch.tokens.shape[1] - 1 if isinstance(batch, SeparateBatch) else inputs.shape[1]
    tokens = inputs[0, : min(window, most)].tolist()
    ends = [] if cu_seqlens is None else [end for end in cu_seqlens[1:].tolist() if end < len(tokens)]
    return FirstWindow(tokens, [*ends, len(tokens)])
