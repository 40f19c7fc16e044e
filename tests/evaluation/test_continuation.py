"""Continuations: the same alone and in company, in pieces and at once, and in memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_train.evaluation import continuation
from dla_train.evaluation.continuation import Continuations, Sampling
from dla_train.models import LanguageModel, ModelConfig, generate, initialize
from dla_train.models.cache import ModelCache
from tests.evaluation.small_models import MIXERS, model_of

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6], [5], [3, 5, 8, 9, 7, 9, 3]]


def texts(model: LanguageModel, prompts: list[list[int]], **how: Any) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for number, token in Continuations(model, prompts, Sampling(**how)):
        found[number].append(token)
    return found


@pytest.mark.parametrize("name", MIXERS)
def test_prompts_of_any_lengths_are_continued_as_if_alone(name: str) -> None:
    model = model_of(name)
    together = texts(model, PROMPTS, max_tokens=12, temperature=0)
    for prompt, text in zip(PROMPTS, together, strict=True):
        assert text == generate(model, torch.tensor(prompt), 12, temperature=0).tolist()


def test_a_drawn_text_does_not_depend_on_its_company() -> None:
    model = model_of("mamba2")
    together = texts(model, PROMPTS, max_tokens=12, seed=7)
    assert len({tuple(text) for text in together}) == len(PROMPTS)
    assert texts(model, PROMPTS[:2], max_tokens=12, seed=7) == together[:2]
    assert texts(model, PROMPTS, max_tokens=12, seed=8) != together


def test_neighboring_seeds_share_no_texts() -> None:
    """One prompt many times, as many texts as draws: nothing but the random sources tells them apart."""
    model = model_of("mamba2")
    drawn = [tuple(text) for seed in range(4) for text in texts(model, [[3, 1]] * 8, max_tokens=12, seed=seed)]
    assert len(set(drawn)) == 32


def test_the_end_of_a_document_ends_a_text_and_not_the_others() -> None:
    model = model_of("gdn")
    free = texts(model, PROMPTS, max_tokens=40, seed=1)
    end = free[0][5]
    cut = texts(model, PROMPTS, max_tokens=40, seed=1, end=end)
    assert cut[0][-1] == end
    assert any(len(text) == 40 for text in cut) or len({len(text) for text in cut}) > 1
    for whole, text in zip(free, cut, strict=True):
        assert text == whole[: whole.index(end) + 1] if end in whole else text == whole


@pytest.mark.parametrize("name", ["mamba2", "attention", "hybrid"])
def test_a_long_prompt_is_read_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    prompt = torch.randint(0, 20, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = texts(model, [prompt], max_tokens=8, temperature=0)
    monkeypatch.setattr(continuation, "PIECE", 16)
    lengths = []
    model.register_forward_pre_hook(lambda *_: None)
    inner = model.hidden_states

    def spy(tokens: torch.Tensor, **named: Any) -> Any:
        lengths.append(tokens.shape[1])
        return inner(tokens, **named)

    monkeypatch.setattr(model, "hidden_states", spy)
    assert texts(model, [prompt], max_tokens=8, temperature=0) == whole
    assert lengths == [16, 16, 16, 2] + [1] * 7


def test_what_is_counted() -> None:
    found = Continuations(model_of("mamba2"), PROMPTS, Sampling(max_tokens=5))
    assert len(list(found)) == 25
    assert found.prompt_tokens == sum(map(len, PROMPTS))
    assert found.tokens == 20, "the first of each comes with the prompt"
    assert found.seconds > 0
    assert found.prompt_seconds > 0


@pytest.mark.parametrize(("tokens", "longer"), [(100, 1_000), pytest.param(1_000, 10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["mamba2", "gdn"])
def test_memory_does_not_grow(name: str, tokens: int, longer: int) -> None:
    """What is remembered, and everything else that stays alive between two tokens."""
    import gc

    config = ModelConfig(vocab_size=20, hidden=8, layers=1, init_std=0.3, mixer=MIXERS[name])
    model = initialize(LanguageModel(config), seed=0).eval()
    found = Continuations(model, [[1, 2, 3]], Sampling(max_tokens=longer))
    past, alive = [], []
    for count, _ in enumerate(found, 1):
        if count in (tokens, longer):
            gc.collect()
            past.append(found.past_bytes)
            alive.append(sum(x.untyped_storage().nbytes() for x in gc.get_objects() if isinstance(x, torch.Tensor)))
    assert past[0] == past[1] > 0
    assert alive[1] <= alive[0]


def test_a_prompt_that_is_finished_leaves_the_others_as_they_are() -> None:
    model = model_of("gdn")
    prompts = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    expected = texts(model, prompts, max_tokens=8, seed=2)
    continuations = Continuations(model, prompts, Sampling(max_tokens=8, seed=2))
    found: list[list[int]] = [[], [], []]
    for number, token in continuations:
        found[number].append(token)
        if number == 1 and len(found[1]) == 3:
            continuations.finish(1)
    assert found == [expected[0], expected[1][:3], expected[2]]


@pytest.mark.parametrize("name", MIXERS)
def test_prompts_of_different_lengths_are_continued_in_the_same_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = model_of(name), []
    inner = model.hidden_states

    def spy(tokens: torch.Tensor, **named: Any) -> Any:
        calls.append(tuple(tokens.shape))
        return inner(tokens, **named)

    monkeypatch.setattr(model, "hidden_states", spy)
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6, 5], [3, 5, 8, 9, 7, 9, 3]]
    found = Continuations(model, prompts, Sampling(max_tokens=3, temperature=0))
    list(found)
    if model.config.has_attention:
        size = [(1, 1)] if model.config.memories else []
        assert calls == [*size, (2, 2), *[(2, 1)] * 2, (1, 5), *[(1, 1)] * 2, (1, 7), *[(1, 1)] * 2]
    else:
        assert calls == [(1, 1), (4, 2), (2, 3), (1, 2), (4, 1), (4, 1)], "a look at the size, the prompts, the texts"
    assert found.prompt_tokens == 16


def test_so_many_go_together_as_their_pasts_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gdn")
    expected = texts(model, PROMPTS, max_tokens=4, temperature=0)
    found = Continuations(model, PROMPTS, Sampling(max_tokens=4, temperature=0))
    list(found)
    monkeypatch.setattr(continuation, "_PAST", 2 * found.past_bytes)
    batches, inner = set(), model.hidden_states

    def spy(tokens: torch.Tensor, **named: Any) -> Any:
        batches.add(len(tokens))
        return inner(tokens, **named)

    monkeypatch.setattr(model, "hidden_states", spy)
    assert texts(model, PROMPTS, max_tokens=4, temperature=0) == expected
    assert batches == {1, 2}


@pytest.mark.parametrize("name", ["attention", "hybrid"])
def test_room_is_left_for_what_softmax_attention_will_keep(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = model_of(name), [[number, 1, 4, 1, 5, 9, 2, 6] for number in range(6)]
    alone = Continuations(model, prompts[:1], Sampling(max_tokens=4, temperature=0))
    list(alone)
    monkeypatch.setattr(continuation, "_PAST", 7 * alone.past_bytes // 2)
    batches, inner = [], model.hidden_states

    def spy(tokens: torch.Tensor, **named: Any) -> Any:
        batches.append(len(tokens))
        return inner(tokens, **named)

    monkeypatch.setattr(model, "hidden_states", spy)
    texts(model, prompts, max_tokens=4, temperature=0)
    assert max(batches) == 3


def test_softmax_attention_cannot_join_pasts_of_different_lengths() -> None:
    model = model_of("attention")
    pasts = [model.hidden_states(torch.ones(1, length, dtype=torch.int64), return_cache=True)[1] for length in (2, 3)]
    with pytest.raises(ValueError, match=r"have seen \[2, 3\] tokens"):
        ModelCache.joined(pasts)
    with pytest.raises(ValueError, match="no caches"):
        ModelCache.joined([])
    assert ModelCache.joined([pasts[0], pasts[0]]).batch == 2
