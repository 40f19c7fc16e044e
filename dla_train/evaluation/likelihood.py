"""The likelihood that a model gives to continuations of contexts.

Contexts of any lengths go through the model together, padded at their ends: the model is causal, so padding after a
token does not change its result. Long contexts are read in pieces, and logits are computed only where they are needed,
so that memory does not grow with their length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dla_train.evaluation.continuation import PIECE, TOGETHER
from dla_train.models import LanguageModel

TOKENS = 4 * PIECE
"""Tokens, including padding, that go through the model at once."""
_LOGITS = 2**24  # logits that exist at once
_NOT_ASKED = -100


class Likelihood(NamedTuple):
    """The likelihood of one continuation.

    log_probability: sum over its tokens, in nats. is_greedy: whether each token is the likeliest in its place.
    """

    log_probability: float
    is_greedy: bool


def likelihoods(
    model: LanguageModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    done: Callable[[int], object] | None = None,
) -> list[Likelihood]:
    """One result for each `(context, continuation)`, in order.

    Args:
        model: in evaluation mode. pairs: tokens; a context has at least one, a continuation may have none.
        done: called after each batch with its number of pairs.
    Raises:
        ValueError: an empty context.
    """
    if any(not context for context, _ in pairs):
        raise ValueError("a context is empty; it must have at least one token")
    found = [Likelihood(0.0, True)] * len(pairs)
    longest_first = sorted(range(len(pairs)), key=lambda number: -_length(pairs[number]))
    while longest_first:
        rows = _rows(_length(pairs[longest_first[0]]))
        members, longest_first = longest_first[:rows], longest_first[rows:]
        for number, result in zip(members, _batch(model, [pairs[number] for number in members]), strict=True):
            found[number] = result
        if done is not None:
            done(len(members))
    return found


def _length(pair: tuple[Sequence[int], Sequence[int]]) -> int:
    """Number of tokens that the model reads: all but the last of the continuation."""
    return max(1, len(pair[0]) + len(pair[1]) - 1)


def _rows(longest: int) -> int:
    return max(1, min(TOGETHER, TOKENS // min(longest, PIECE)))


@torch.no_grad()
def _batch(model: LanguageModel, pairs: list[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
    tokens, targets = _padded(pairs)
    device = next(model.parameters()).device
    sums, greedy = torch.zeros(len(pairs), dtype=torch.float64), torch.ones(len(pairs), dtype=torch.bool)
    cache = None
    for start in range(0, tokens.shape[1], PIECE):
        piece, wanted = tokens[:, start : start + PIECE], targets[:, start : start + PIECE]
        goes_on = start + PIECE < tokens.shape[1]
        hidden, cache = model.hidden_states(piece.to(device), cache=cache, return_cache=goes_on)
        row, place = (wanted != _NOT_ASKED).nonzero(as_tuple=True)
        at_once = max(1, _LOGITS // model.config.vocab_size)
        for rows, places in zip(row.split(at_once), place.split(at_once), strict=True):
            logits = model.head(hidden[rows.to(device), places.to(device)])
            target = wanted[rows, places].to(device)
            logits = logits.float() if logits.dtype != torch.float64 else logits
            chosen = torch.log_softmax(logits, -1).gather(-1, target[:, None])[:, 0]
            sums.index_add_(0, rows, chosen.double().cpu())
            greedy[rows[(logits.argmax(-1) != target).cpu()]] = False
    return [Likelihood(float(total), bool(every)) for total, every in zip(sums, greedy, strict=True)]


def _padded(pairs: list[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """The tokens that are read, and the target after each, both `[pairs, longest]`."""
    longest = max(map(_length, pairs))
    tokens = torch.zeros(len(pairs), longest, dtype=torch.int64)
    targets = torch.full_like(tokens, _NOT_ASKED)
    for row, (context, continuation) in enumerate(pairs):
        read = [*context, *continuation][: _length((context, continuation))]
        tokens[row, : len(read)] = torch.tensor(read)
        if continuation:
            targets[row, len(context) - 1 : len(read)] = torch.tensor(list(continuation))
    return tokens, targets
