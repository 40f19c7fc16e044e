"""Windows that several ranks share (context parallelism, as in DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank of a group holds a slice of every window. Whatever works token by token needs no other slice. Mixers look
back, so in front of them the ranks exchange: each gives away the channels of all heads but some for its slice, and gets
those of its own heads for the whole window. Heads are independent of each other, scores, boundaries and caches
included, so every rank computes exactly what a single one would for these heads. Behind the mixer they exchange back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Heads(NamedTuple):
    """A run of channels: `number` heads of `width` channels each, head after head.

    `serve_many`: each is for several heads of another run, as keys of grouped queries are. If there are fewer than
    ranks, neighbouring ranks compute the same one.
    """

    number: int
    width: int
    serve_many: bool = False

    @property
    def channels(self) -> int:
        """All of them."""
        return self.number * self.width


@dataclass(frozen=True)
class Context:
    """A group of ranks that share windows, as one of them sees it.

    Attributes:
        size: number of ranks. rank: of this process among them, and number of its slice. group: name of their process
            group, "" for a single rank.
    """

    size: int = 1
    rank: int = 0
    group: str = ""

    def slice_of(self, x: Tensor) -> Tensor:
        """This rank's slice `[B, T / size, ...]` of `[B, T, ...]`.

        Raises:
            ValueError: the ranks cannot share so many tokens evenly.
        """
        if x.shape[1] % self.size:
            raise ValueError(
                f"there are {x.shape[1]} tokens in a row, which {self.size} ranks cannot share evenly; their number "
                f"must be a multiple of {self.size}"
            )
        return x if self.size == 1 else x.chunk(self.size, 1)[self.rank]

    def share(self, heads: Heads) -> int:
        """How many heads a rank computes. If their number is no multiple of that of the ranks, the last ranks compute
        heads of zeros, which nobody asks for."""
        return -(-heads.number // self.size)

    def first(self, heads: Heads) -> int:
        """The first head that this rank computes; their number if it has only zeros."""
        if heads.serve_many and heads.number < self.size:
            return self.rank * heads.number // self.size
        return min(self.rank * self.share(heads), heads.number)

    def real(self, heads: Heads) -> int:
        """How many of the heads that this rank computes are not zeros."""
        return min(self.share(heads), heads.number - self.first(heads))

    def own(self, x: Tensor, heads: Sequence[Heads] | None = None) -> Tensor:
        """What of a parameter concerns this rank's heads.

        Args:
            x: `[channels, ...]`, one head after another. heads: the channels; None for one channel per head.
        """
        if self.size == 1:
            return x
        heads = heads or (Heads(len(x), 1),)
        chosen = []
        for part, run in zip(x.split([run.channels for run in heads]), heads, strict=True):
            first, real, share = self.first(run), self.real(run), self.share(run)
            chosen.append(part[first * run.width : (first + real) * run.width])
            if real < share:
                chosen.append(x.new_zeros((share - real) * run.width, *x.shape[1:]))
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen)

    def placed(self, x: Tensor, number: int) -> Tensor:
        """Values of this rank's heads `[share, ...]` among zeros for all others `[number, ...]`; the sum over the group
        has those of all."""
        if self.size == 1:
            return x
        every, heads = x.new_zeros(number, *x.shape[1:]), Heads(number, 1)
        first, real = self.first(heads), self.real(heads)
        every[first : first + real] = x[:real]
        return every

    def to_heads(self, *pieces: tuple[Tensor, Sequence[Heads]]) -> tuple[Tensor, ...]:
        """Gives up the other heads of this rank's tokens for all tokens of its own heads.

        Args:
            pieces: `[B, T / size, channels]` each, and what their channels are.
        Returns:
            the same `[B, T, channels]`, with fewer channels in the same order.
        """
        if self.size == 1:
            return tuple(x for x, _ in pieces)
        runs = [run for _, heads in pieces for run in heads]
        parts = [
            self._by_rank(part, run)
            for x, heads in pieces
            for part, run in zip(x.split([run.channels for run in heads], -1), heads, strict=True)
        ]
        received = _exchange(torch.cat(parts, -1), self.group)  # [size, B, T / size, ...], slice after slice
        whole = received.movedim(0, 1).flatten(1, 2)
        sizes = [self.share(run) * run.width for run in runs]
        ends = list(itertools.accumulate((len(heads) for _, heads in pieces), initial=0))
        return whole.split([sum(sizes[begin:end]) for begin, end in itertools.pairwise(ends)], -1)

    def apart(self, x: Tensor) -> Tensor:
        """A part of a tensor whose rest was given to `to_heads`, in memory of its own where that has left: as a view it
        would keep the rest until the backward."""
        return x if self.size == 1 else x.contiguous()

    def split_heads(self, x: Tensor, heads: Sequence[Heads]) -> tuple[Tensor, ...]:
        """`[B, T, channels]`, as `to_heads` returns them -> for each run of heads `[B, T, share, width]`."""
        parts = x.split([self.share(run) * run.width for run in heads], -1)
        return tuple(part.unflatten(-1, (-1, run.width)) for part, run in zip(parts, heads, strict=True))

    def to_tokens(self, x: Tensor, heads: int) -> Tensor:
        """The way back: all tokens of this rank's heads `[B, T, share, width]` for all `heads` of its tokens
        `[B, T / size, heads, width]`."""
        if self.size == 1:
            return x
        sent = x.unflatten(1, (self.size, -1)).movedim(1, 0)
        received = _exchange(sent, self.group)  # [size, B, T / size, share, width], heads after heads
        return received.movedim(0, 2).flatten(2, 3)[:, :, :heads]

    def _by_rank(self, x: Tensor, heads: Heads) -> Tensor:
        """`[..., channels]` -> `[size, ..., channels of one rank]`, for every rank those that it needs."""
        if heads.serve_many and heads.number < self.size:
            each = x.unflatten(-1, (heads.number, -1)).movedim(-2, 0)
            return each.repeat_interleave(self.size // heads.number, 0)
        zeros = self.share(heads) * self.size - heads.number
        if zeros:
            x = F.pad(x, (0, zeros * heads.width))
        return x.unflatten(-1, (self.size, -1)).movedim(-2, 0)


ALONE = Context()
"""Of a rank that has whole windows."""


class InContext(nn.Module):
    """A module that works differently where windows are shared.

    Attributes:
        context: the group that shares them.
    """

    context: Context = ALONE


def share_windows(model: nn.Module, context: Context) -> None:
    """Makes `model` share windows with the other ranks of `context` from now on, or keep them whole with `ALONE`."""
    for module in model.modules():
        if isinstance(module, InContext):
            module.context = context


@contextmanager
def windows_kept_whole(model: InContext) -> Iterator[None]:
    """For a while `model` computes whole windows, without other ranks."""
    context = model.context
    share_windows(model, ALONE)
    try:
        yield
    finally:
        share_windows(model, context)


class _Exchange(torch.autograd.Function):
    """Rank r gets part r of every rank's tensor; so do the gradients, on their way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        received = _all_to_all(x, group)
        # What is waited for is the tensor itself, and torch.compile of 2.11 loses the gradient of what has two names.
        return received.view_as(received)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _exchange(dy, ctx.group), None


def _exchange(x: Tensor, group: str) -> Tensor:
    return _Exchange.apply(x, group)  # type: ignore[return-value]


def _all_to_all(x: Tensor, group: str) -> Tensor:
    """`[size, ...]` -> the same shape: part i comes from rank i."""
    import torch.distributed._functional_collectives as collectives  # which not every build of torch has

    sent = collectives.all_to_all_single(x.contiguous(), None, None, group)  # pyright: ignore[reportArgumentType]
    return collectives.wait_tensor(sent)
