"""Likelihoods of continuations against the whole model on one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from dla_train.evaluation import likelihood
from dla_train.evaluation.likelihood import likelihoods
from dla_train.models import LanguageModel
from tests.evaluation.small_models import MIXERS, model_of

PAIRS = [([3, 1, 4], [1, 5]), ([9], [2]), ([6, 5, 3, 5, 8, 9, 7, 9], [3, 2, 3, 8]), ([4, 6], []), ([2, 6, 4, 3], [3])]


def alone(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = model(torch.tensor([context + continuation]))[0][0].detach().log_softmax(-1)
    total, greedy = 0.0, True
    for place, token in enumerate(continuation, len(context) - 1):
        total += float(logits[place, token])
        greedy &= int(logits[place].argmax()) == token
    return total, greedy


@pytest.mark.parametrize("piece", [3, 4096])
@pytest.mark.parametrize("name", MIXERS)
def test_each_is_what_the_model_says_of_it_alone(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "PIECE", piece)
    monkeypatch.setattr(likelihood, "_LOGITS", 2 * 20)
    model = model_of(name)
    for pair, found in zip(PAIRS, likelihoods(model, PAIRS), strict=True):
        total, greedy = alone(model, *pair)
        assert found.log_probability == pytest.approx(total, abs=1e-9)
        assert found.is_greedy == greedy


def test_a_batch_of_one_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gdn")
    together = likelihoods(model, PAIRS)
    monkeypatch.setattr(likelihood, "TOKENS", 1)
    for found, other in zip(likelihoods(model, PAIRS), together, strict=True):
        assert found.log_probability == pytest.approx(other.log_probability, abs=1e-9)
        assert found.is_greedy == other.is_greedy


def test_the_likeliest_continuation_is_greedy_until_one_token_is_not() -> None:
    model, tokens = model_of("mamba2"), [3, 1, 4]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    context, best = tokens[:3], tokens[3:]
    worse = [*best[:-1], (best[-1] + 1) % 20]
    assert [found.is_greedy for found in likelihoods(model, [(context, best), (context, worse)])] == [True, False]


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context is empty"):
        likelihoods(model_of("mamba2"), [([], [1])])


def test_progress_counts_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "TOGETHER", 2)
    told: list[int] = []
    likelihoods(model_of("mamba2"), PAIRS, done=told.append)
    assert told == [2, 2, 1]
