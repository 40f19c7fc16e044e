"""Continues prompts with a model, several at once; each continuation is independent of the other prompts.

A prompt is read in pieces, so that memory does not grow with its length, and then one token is drawn after the other;
with linear mixers the past takes a fixed number of bytes. Prompts go through the model together (with softmax
attention, only those of equal length). Each draws from a random source of its own, so that its text does not depend on
the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dla_train.models import AttentionConfig, LanguageModel
from dla_train.models.cache import ModelCache
from dla_train.models.generation import sample_each

PIECE = 4096
"""Tokens of a prompt that are read at once."""
TOGETHER = 64
"""Most prompts that go through the model at once."""
_TOKENS = 4 * PIECE  # of all prompts that are read at once
_PAST = 2**32  # bytes that the pasts of all prompts may take together, unless a single one takes more


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: of a continuation. end: the token that ends a continuation earlier, or None.
        temperature, top_p: see `dla_train.models.generate`. seed: with the prompt's number, determines its random
            source.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    end: int | None = None


class Continuations:
    """Iterates over `(prompt's number, token)` in the order in which tokens are drawn.

    Args:
        model: in evaluation mode. prompts: tokens, at least one each.
    Attributes:
        prompt_tokens, prompt_seconds: tokens read so far, and the time for reading them and drawing each first token.
        tokens, seconds: further tokens drawn so far, and the time for them. past_bytes: size of the largest past of a
            prompt.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling
        self.device = next(model.parameters()).device
        self.prompt_tokens = self.tokens = self.past_bytes = 0
        self.prompt_seconds = self.seconds = 0.0
        self._has_attention = model.config.has_attention
        self._finished: set[int] = set()

    def finish(self, number: int) -> None:
        """Draw no more tokens for a prompt; may be called while iterating, with effect from the next step."""
        self._finished.add(number)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        lengths: dict[int, list[int]] = {}
        for number, prompt in sorted(enumerate(self.prompts), key=lambda one: len(one[1])):
            # Pasts of prompts of different lengths can be joined only if they have a fixed size.
            lengths.setdefault(len(prompt) if self._has_attention else 0, []).append(number)
        fixed = self._fixed_bytes()
        for length, members in lengths.items():
            past = fixed + self._growing_bytes(length + self.sampling.max_tokens)
            together = max(1, min(TOGETHER, _PAST // max(1, past)))
            for start in range(0, len(members), together):
                yield from self._continue(members[start : start + together])

    def _fixed_bytes(self) -> int:
        """Size of a prompt's past without its tokens: the slots of a large model take gigabytes."""
        if not self.model.config.memories or len(self.prompts) < 2:
            return 0
        self._step(torch.tensor([self.prompts[0][:1]], device=self.device), None)
        return self.past_bytes

    def _growing_bytes(self, tokens: int) -> int:
        """Size of the keys and values that softmax attention keeps of so many tokens."""
        config, kept = self.model.config, 0
        for mixer in config.mixers:
            if isinstance(mixer, AttentionConfig):
                kept += mixer.keys_and_values(config.hidden) * (
                    tokens if mixer.window is None else min(tokens, mixer.window - 1)
                )
        return kept * self.model.embedding.weight.element_size()

    def _continue(self, members: list[int]) -> Iterator[tuple[int, int]]:
        sources = {number: _source(self.sampling.seed, number) for number in members}
        begin = time.perf_counter()
        hidden, cache = self._read(members)
        self.prompt_tokens += sum(len(self.prompts[number]) for number in members)
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
            hidden, cache = self._step(torch.tensor(chosen, device=self.device)[:, None], cache.donated())

    def _read(self, members: list[int]) -> tuple[Tensor, ModelCache]:
        """The last hidden state of each prompt, `[B, hidden]`, and their pasts; `members` must ascend by length.

        All prompts are read together up to the end of the shortest, then the longer ones up to the next end, and so on,
        so that no prompt reads padding, which would enter its state.
        """
        ends: list[tuple[Tensor, ModelCache]] = []
        cache, at = None, 0
        while members:
            until = len(self.prompts[members[0]])
            tokens = torch.tensor([self.prompts[number][at:until] for number in members], device=self.device)
            last = tokens  # replaced in the loop, because until > at
            for piece in tokens.split(max(1, min(PIECE, _TOKENS // len(members))), 1):
                last, cache = self._step(piece, cache)
            assert cache is not None
            ended = sum(len(self.prompts[number]) == until for number in members)
            if ended == len(members):
                ends.append((last, cache))
                break
            rows = torch.arange(len(members), device=self.device)
            ends.append((last[:ended], cache.rows(rows[:ended])))
            members, cache, at = members[ended:], cache.rows(rows[ended:]), until
        if len(ends) == 1:
            return ends[0]
        return torch.cat([hidden for hidden, _ in ends]), ModelCache.joined([past for _, past in ends])

    @torch.no_grad()
    def _step(self, tokens: Tensor, cache: ModelCache | None) -> tuple[Tensor, ModelCache]:
        hidden, new = self.model.hidden_states(tokens, cache=cache, return_cache=True)
        assert new is not None
        self.past_bytes = max(self.past_bytes, new.bytes // new.batch)
        return hidden[:, -1], new

    @torch.no_grad()
    def _draw(self, hidden: Tensor, sources: list[torch.Generator]) -> list[int]:
        how = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        return sample_each(self.model.head(hidden), sources, **how)


def _source(seed: int, number: int) -> torch.Generator:
    """The random source of prompt `number`. Seed and number are hashed: with `seed + number`, prompt 1 of seed 0 would
    share the source of prompt 0 of seed 1."""
    mixed = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))
