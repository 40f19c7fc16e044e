"""Loss by position: how much a longer past helps a model, and up to which length."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dla_data.counted import counted
from dla_train.errors import UsageError
from dla_train.evaluation.built_in.task import Asked, Result, Task
from dla_train.evaluation.built_in.text import tokenizer_of, tokens_to_read
from dla_train.evaluation.continuation import PIECE, TOGETHER
from dla_train.evaluation.likelihood import TOKENS
from dla_train.models import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS = 64
"""Windows that are read if no limit is given."""
_LONGER = 4  # training windows in the length that a linear model reads if no length is given
_MOST_TOKENS = 50_000_000  # at most so many tokens of the text are used, over which the windows are spread


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Positions `first` to `last`, both included; a token at position p is predicted from p tokens before it.

    Attributes:
        loss: mean, in nats per token. error: its standard error over windows, None for a single one. tokens: how many
            the mean is taken over.
    """

    first: int
    last: int
    loss: float
    error: float | None
    tokens: int


def edges(window: int) -> list[tuple[int, int]]:
    """First and last position of each bin: 1, 2, 3 to 4, 5 to 8 and so on, the last one up to `window`."""
    powers = [1 << power for power in range(window.bit_length() + 1)]
    return [(low // 2 + 1, min(low, window)) for low in powers if low // 2 + 1 <= window]


@torch.no_grad()
def token_losses(model: LanguageModel, windows: Tensor) -> Tensor:
    """The loss of every token but the first of windows `[B, T + 1]`, as `[B, T]` on the CPU; any length, read in
    pieces."""
    device, cache, found = next(model.parameters()).device, None, []
    time = windows.shape[1] - 1
    for start in range(0, time, PIECE):
        piece = windows[:, start : start + PIECE + 1].to(device)
        goes_on = start + PIECE < time
        hidden, cache = model.hidden_states(piece[:, :-1], cache=cache, return_cache=goes_on)
        found.append(model.head(hidden, piece[:, 1:], per_token=True).double().cpu())
    return torch.cat(found, 1)


def loss_by_position(
    model: LanguageModel, tokens: npt.NDArray[np.int64], window: int, starts: list[int], say: object = None
) -> list[Bin]:
    """Mean losses in the windows of `window + 1` tokens that begin at `starts`."""
    together = max(1, min(TOGETHER, TOKENS // min(window, PIECE)))
    spans = edges(window)
    means: list[Tensor] = []  # of each window and bin
    for first in range(0, len(starts), together):
        members = starts[first : first + together]
        batch = torch.from_numpy(np.stack([tokens[start : start + window + 1] for start in members]))
        losses = token_losses(model, batch)
        means.append(torch.stack([losses[:, low - 1 : high].mean(1) for low, high in spans], 1))
        if callable(say):
            say(first + len(members))
    every = torch.cat(means)
    count = len(every)
    errors = (every.std(0) / math.sqrt(count)).tolist() if count > 1 else [None] * len(spans)
    return [
        Bin(first=low, last=high, loss=loss, error=error, tokens=count * (high - low + 1))
        for (low, high), loss, error in zip(spans, every.mean(0).tolist(), errors, strict=True)
    ]


class PerplexityByPosition(Task):
    """Windows of the longest length, spread evenly over the text.

    Raises:
        UsageError: see `Task`; also if the text is shorter than one window.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        tokenizer = tokenizer_of(asked, "perplexity-by-position")
        usual = asked.window if asked.is_limited else _LONGER * asked.window
        self.length = max(asked.within_reach([usual]))
        self.tokens = tokens_to_read(asked, tokenizer, max(_MOST_TOKENS, self.length + 1))
        if asked.lengths is None:
            self.length = min(self.length, max(asked.window, (len(self.tokens) - 1) // 2))
        if len(self.tokens) <= self.length:
            raise UsageError(
                f"the text has {counted(len(self.tokens), 'token')}, too few for one window of {self.length:,}: give "
                f"--lengths of at most {len(self.tokens) - 1:,}, or a longer text with --text FILE."
            )

    def run(self) -> Result:
        """See `Task`."""
        asked, window = self.asked, self.length
        there = (len(self.tokens) - 1) // window
        count = min(asked.limit or WINDOWS, there)
        starts = [number * there // count * window for number in range(count)]

        def say(done: int) -> None:
            asked.say(f"perplexity-by-position: {done} of {counted(count, 'window')} of {counted(window, 'token')}")

        bins = loss_by_position(asked.trained.model, self.tokens, window, starts, say)
        text = "the validation text" if asked.text is None else asked.text.name
        return Result(
            name="perplexity-by-position",
            note=f"{counted(count, 'window')} of {counted(window, 'token')} of {text}; the model was trained on "
            f"windows of {asked.window:,}. A token at position p is predicted from the p tokens before it.",
            heads=["position", "loss", "±", "perplexity", "tokens"],
            rows=[
                [
                    f"{one.first:,}" if one.first == one.last else f"{one.first:,} to {one.last:,}",
                    f"{one.loss:.3f}",
                    "" if one.error is None else f"{one.error:.2g}",
                    f"{_perplexity(one.loss):.1f}",
                    f"{one.tokens:,}",
                ]
                for one in bins
            ],
            values={
                "window": window,
                "windows": count,
                "trained_window": asked.window,
                "bins": [asdict(one) | {"perplexity": _perplexity(one.loss)} for one in bins],
            },
            draw=lambda figure: _draw(figure, bins, asked.window, asked.trained.title),
        )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # e ** 710 overflows


def _draw(figure: Figure, bins: list[Bin], trained: int, title: str) -> None:
    axes = figure.add_subplot()
    middles = [math.sqrt(one.first * one.last) for one in bins]
    losses = [one.loss for one in bins]
    errors = [one.error or 0.0 for one in bins]
    low, high = zip(*((loss - error, loss + error) for loss, error in zip(losses, errors, strict=True)), strict=True)
    axes.fill_between(middles, low, high, color="#9db7d5", alpha=0.5, linewidth=0, label="± standard error")
    axes.plot(middles, losses, color="#1f5a99", marker="o", markersize=4, label="loss")
    if trained < bins[-1].last:
        axes.axvline(trained, color="#c8501e", linestyle="--", linewidth=1.2, label="training window")
    axes.set_xscale("log", base=2)
    ticks = [one.last for one in bins[:: 2 if len(bins) > 10 else 1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=title, xlabel="position: tokens read before", ylabel="loss, nats per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
