"""Text from a model: read the prompt at once, then one token after the other in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dla_train.models.language_model import LanguageModel


def generate(
    model: LanguageModel,
    prompt: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues every row of `prompt` by `max_tokens` tokens.

    Args:
        model: any language model; with linear mixers, memory is constant in the number of tokens.
        prompt: `[B, T]` or `[T]` int64, T >= 1.
        max_tokens: how many tokens to add, at least 1.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: samples from the likeliest tokens whose probabilities reach this sum, in (0, 1].
        generator: source of the randomness; the same state gives the same text. torch's global one if None.
    Returns:
        the new tokens alone, `[B, max_tokens]` or `[max_tokens]`.
    Raises:
        ValueError: an argument out of its range.
    """
    tokens = list(stream(model, prompt, max_tokens, temperature=temperature, top_p=top_p, generator=generator))
    new = torch.stack(tokens, 1)
    return new[0] if prompt.ndim == 1 else new


def stream(
    model: LanguageModel,
    prompt: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """As `generate`, but hands over each step's tokens `[B]` as they come. Arguments are checked at once."""
    if prompt.ndim not in (1, 2) or prompt.shape[-1] < 1:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; it must be [B, T] or [T] with at least one token")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    _check_sampling(temperature, top_p)
    return _stream(model, torch.atleast_2d(prompt), max_tokens, temperature, top_p, generator)


@torch.no_grad()
def _stream(
    model: LanguageModel,
    tokens: Tensor,
    max_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    cache = None
    for _ in range(max_tokens):
        hidden, cache = model.hidden_states(tokens, cache=None if cache is None else cache.donated(), return_cache=True)
        logits = model.head(hidden[:, -1])
        choice = sample(logits, temperature=temperature, top_p=top_p, generator=generator)
        yield choice
        tokens = choice[:, None]


def sample(
    logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """One token per row of `logits` `[B, vocab]` -> `[B]` int64. Arguments and errors as `generate`."""
    _check_sampling(temperature, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = _probabilities(logits, temperature, top_p)
    source = probabilities if generator is None else probabilities.to(generator.device)
    return torch.multinomial(source, 1, generator=generator)[:, 0].to(logits.device)


def sample_each(
    logits: Tensor, generators: Sequence[torch.Generator], *, temperature: float = 1.0, top_p: float = 1.0
) -> list[int]:
    """One token per row of `logits` `[B, vocab]`, each by a generator of its own; the rest is as in `sample`.

    A generator, on the CPU, gives a single number, from which all rows are drawn at once, on the device of the logits.
    """
    _check_sampling(temperature, top_p)
    if temperature == 0:
        return logits.argmax(-1).tolist()
    drawn = torch.stack([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
    reached = _probabilities(logits, temperature, top_p).double().cumsum(-1)
    # The first token that the sums of probabilities go beyond the number with; one of probability zero never is.
    chosen = torch.searchsorted(reached, drawn.to(reached.device) * reached[:, -1:], right=True)
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1).tolist()


def _probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """`[B, vocab]` float32; of the likeliest tokens alone, not adding up to one, if `top_p` is below 1."""
    # The largest logit is subtracted first: divided by a temperature near 0 it would be infinite.
    below = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = torch.softmax(below / max(temperature, torch.finfo(torch.float32).tiny), -1)
    return _nucleus(probabilities, top_p) if top_p < 1 else probabilities


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """`[B, vocab]` with zeros outside the smallest set of likeliest tokens that reaches `top_p`; never an empty set."""
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    # As float32 a smaller top_p would be 0, which the likeliest token does not stay below either.
    kept = ordered.masked_fill(before >= max(top_p, torch.finfo(torch.float32).tiny), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def _check_sampling(temperature: float, top_p: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be at least 0 (0 takes the likeliest token)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be greater than 0 and at most 1")
