"""Prompts continued by a model, several at once, each the same whatever stands beside it.

A prompt is read in pieces, so that memory does not grow with its length, and then one token is drawn after the other:
with linear mixers the past is a fixed number of bytes. Prompts of equal length go through the model together; each
draws from a random source of its own, so that its text does not depend on the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dla_train.models import LanguageModel
from dla_train.models.cache import ModelCache
from dla_train.models.generation import sample

PIECE = 4096
"""Tokens of a prompt that are read at one time."""
TOGETHER = 64
"""Prompts that go through the model at one time."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: of a continuation. end: the token that ends one before, or None.
        temperature, top_p: see `dla_train.models.generate`. seed: with a prompt's number, of its random source.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    end: int | None = None


class Continuations:
    """Iterates over `(prompt's number, token)` in the order in which tokens come.

    Args:
        model: in evaluation mode. prompts: tokens, at least one each.
    Attributes:
        prompt_tokens, prompt_seconds: read so far. tokens, seconds: drawn so far; the first comes with the prompt.
        past_bytes: the most that was remembered of one prompt.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling
        self.device = next(model.parameters()).device
        self.prompt_tokens = self.tokens = self.past_bytes = 0
        self.prompt_seconds = self.seconds = 0.0
        self._finished: set[int] = set()

    def finish(self, number: int) -> None:
        """Draw no more for a prompt; called while iterating, it is left out of the next step."""
        self._finished.add(number)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        lengths: dict[int, list[int]] = {}
        for number, prompt in enumerate(self.prompts):
            lengths.setdefault(len(prompt), []).append(number)
        for members in lengths.values():
            for start in range(0, len(members), TOGETHER):
                yield from self._continue(members[start : start + TOGETHER])

    def _continue(self, members: list[int]) -> Iterator[tuple[int, int]]:
        sources = {number: torch.Generator().manual_seed(self.sampling.seed + number) for number in members}
        begin = time.perf_counter()
        tokens = torch.tensor([self.prompts[number] for number in members], device=self.device)
        hidden, cache = self._read(tokens)
        self.prompt_tokens += tokens.numel()
        for count in range(1, self.sampling.max_tokens + 1):
            chosen = self._draw(hidden, [sources[number] for number in members])
            now = time.perf_counter()
            if count == 1:
                self.prompt_seconds += now - begin
            else:
                self.seconds += now - begin
                self.tokens += len(members)
            yield from zip(members, chosen, strict=True)
            begin = time.perf_counter()
            going = [
                row
                for row, token in enumerate(chosen)
                if token != self.sampling.end and members[row] not in self._finished
            ]
            if not going or count == self.sampling.max_tokens:
                return
            members, chosen = [members[row] for row in going], [chosen[row] for row in going]
            if len(going) < cache.batch:
                cache = cache.rows(torch.tensor(going, device=self.device))
            hidden, cache = self._step(torch.tensor(chosen, device=self.device)[:, None], cache)

    def _read(self, tokens: Tensor) -> tuple[Tensor, ModelCache]:
        hidden, cache = self._step(tokens[:, :PIECE], None)
        for piece in tokens[:, PIECE:].split(PIECE, 1) if tokens.shape[1] > PIECE else ():
            hidden, cache = self._step(piece, cache)
        return hidden, cache

    @torch.no_grad()
    def _step(self, tokens: Tensor, cache: ModelCache | None) -> tuple[Tensor, ModelCache]:
        hidden, new = self.model.hidden_states(tokens, cache=cache, return_cache=True)
        assert new is not None
        self.past_bytes = max(self.past_bytes, new.bytes // new.batch)
        return hidden[:, -1], new

    @torch.no_grad()
    def _draw(self, hidden: Tensor, sources: list[torch.Generator]) -> list[int]:
        logits = self.model.head(hidden)
        how = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        rows = zip(logits.split(1), sources, strict=True)
        return [int(sample(row, generator=source, **how)) for row, source in rows]
