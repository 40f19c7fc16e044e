"""Softmax attention inside packed documents.

One call for each of hundreds of short documents would take longer to launch than to run, and a mask over all pairs of
tokens T x T memory. So short documents of similar length are padded to one length and attended to together; their
padding comes last, where no token of theirs reads it.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.compiled_graphs import outside_compiled_graphs
from dla_kernels.sending import sent
from dla_train.models.documents import Documents
from dla_train.models.sliding_window import attend

LONG = 1024
"""Documents of more tokens are attended to one by one: they are few, and padding would cost more than a launch."""


@dataclass(frozen=True)
class Groups:
    """How the documents of one row are divided.

    Attributes:
        together: for each group of short documents the tokens that they have, `[n, width]` int64; padding repeats the
            row's last token. alone: first token and end of each long document.
        order: `[T]` int64, where each token of the row is in the results of all groups and then of the long documents,
            one after the other.
    """

    together: tuple[Tensor, ...]
    alone: tuple[tuple[int, int], ...]
    order: Tensor


@outside_compiled_graphs  # a graph would be made anew for every batch, as the documents are others
def attend_to_documents(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
    """As `attend`, where no token reads another document than its own.

    Args:
        q: `[1, H, T, D]`. k, v: `[1, G, T, D]`. documents: that the T tokens are cut into. window: as in `attend`.
    Returns:
        as q.
    """
    if len(documents.lengths) == 1:
        return attend(q, k, v, window)
    groups = _groups(documents.lengths, q.device)
    parts = []
    for tokens in groups.together:
        count, width = tokens.shape
        group = [x[0].index_select(1, tokens.flatten()).unflatten(1, (count, width)).transpose(0, 1) for x in (q, k, v)]
        parts.append(attend(group[0], group[1], group[2], window).transpose(0, 1).flatten(1, 2))
    for start, end in groups.alone:
        parts.append(attend(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], window)[0])
    return torch.cat(parts, 1).index_select(1, groups.order)[None]


@functools.lru_cache(maxsize=4)  # all layers of a call ask for the same
@torch.inference_mode(False)  # what validation has made, training may find here
def _groups(lengths: tuple[int, ...], device: torch.device) -> Groups:
    starts = list(itertools.accumulate(lengths, initial=0))
    time = starts.pop()
    by_width: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length <= LONG:
            by_width.setdefault(1 << (length - 1).bit_length(), []).append(number)
    alone = [number for number, length in enumerate(lengths) if length > LONG]
    together, order, done = [], torch.empty(time, dtype=torch.int64), 0
    for width, numbers in sorted(by_width.items()):
        first = torch.tensor([starts[number] for number in numbers])
        length = torch.tensor([lengths[number] for number in numbers])
        place = torch.arange(width)
        tokens = (first[:, None] + place).clamp(max=time - 1)
        is_own = place < length[:, None]
        order[tokens[is_own]] = done + is_own.flatten().nonzero().flatten()
        done += tokens.numel()
        together.append(sent(tokens, device))
    for number in alone:
        order[starts[number] : starts[number] + lengths[number]] = torch.arange(done, done + lengths[number])
        done += lengths[number]
    spans = tuple((starts[number], starts[number] + lengths[number]) for number in alone)
    return Groups(tuple(together), spans, sent(order, device))
