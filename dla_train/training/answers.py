"""A model's answers at the positions where a question is asked."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dla_data.synthetic import IGNORED, Examples
from dla_train.models import LanguageModel


class Answers(NamedTuple):
    """One entry for every answer of a batch, in reading order.

    Attributes:
        row: `[n]` int64, the example that asks. is_right: `[n]` bool, whether the likeliest token of the whole
            vocabulary is the answer. loss: `[n]` float32 or wider, nats.
    """

    row: Tensor
    is_right: Tensor
    loss: Tensor


@torch.no_grad()
def answer(model: LanguageModel, examples: Examples) -> Answers:
    """The model's answers to `examples` `[B, T]`, or to its slice of them; logits are computed only for positions with
    a target."""
    targets = model.context.slice_of(examples.targets)
    counts = targets != IGNORED
    hidden, _ = model.hidden_states(examples.inputs)
    logits, targets = model.head(hidden[counts]), targets[counts]
    losses = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
    return Answers(counts.nonzero()[:, 0], logits.argmax(-1) == targets, losses)
