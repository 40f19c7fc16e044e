"""Sampling, and generation that equals the full forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_train.models import generate, stream
from dla_train.models.generation import sample, sample_each


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_text_is_that_of_the_full_forward_pass(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    prompt = tokens(2, 7)
    expected = prompt
    for _ in range(12):
        expected = torch.cat((expected, model(expected)[0][:, -1:].argmax(-1)), 1)
    assert torch.equal(generate(model, prompt, 12, temperature=0), expected[:, 7:])


def test_the_seed_decides(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2", "dynamic")
    prompt = tokens(2, 7)
    first = generate(model, prompt, 20, generator=seeded(1))
    assert torch.equal(generate(model, prompt, 20, generator=seeded(1)), first)
    assert not torch.equal(generate(model, prompt, 20, generator=seeded(2)), first)


def test_one_prompt_needs_no_batch(make_model: Any, tokens: Any) -> None:
    model = make_model("gated_deltanet", "dynamic")
    prompt = tokens(1, 7)
    assert torch.equal(generate(model, prompt[0], 5, temperature=0), generate(model, prompt, 5, temperature=0)[0])


def test_a_stream_hands_over_the_same_tokens_one_by_one(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2", "dynamic")
    prompt = tokens(2, 7)
    steps = stream(model, prompt, 6, generator=seeded(3))
    first = next(steps)
    assert first.shape == (2,)
    assert torch.is_grad_enabled()  # the generator keeps no_grad to itself
    assert torch.equal(torch.stack([first, *steps], 1), generate(model, prompt, 6, generator=seeded(3)))


def sample_in_rows(logits: torch.Tensor, **options: Any) -> torch.Tensor:
    """As `sample`, each row with a generator of its own."""
    options.pop("generator", None)
    return torch.tensor(sample_each(logits, [seeded(row) for row in range(len(logits))], **options))


@pytest.mark.parametrize("draw", [sample, sample_in_rows])
def test_sampling_follows_the_distribution(draw: Any) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, 4)
    counts = torch.bincount(draw(logits, generator=seeded(0)), minlength=4) / 20_000
    torch.testing.assert_close(counts, logits[0].exp(), rtol=0, atol=0.02)
    cold = torch.bincount(draw(logits, temperature=0.5, generator=seeded(0)), minlength=4) / 20_000
    torch.testing.assert_close(cold, torch.softmax(2 * logits[0], -1), rtol=0, atol=0.02)


@pytest.mark.parametrize("draw", [sample, sample_in_rows])
@pytest.mark.parametrize(("top_p", "kept"), [(1e-300, 1), (0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(draw: Any, top_p: float, kept: int) -> None:
    # the order of the tokens must not matter
    logits = torch.tensor([[0.15625, 0.5, 0.03125, 0.3125]], dtype=torch.float64).log().expand(5_000, 4)
    drawn = draw(logits, top_p=top_p, generator=seeded(0)).unique().tolist()
    assert drawn == sorted([1, 3, 0, 2][:kept])


@pytest.mark.parametrize("draw", [sample, sample_in_rows])
@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 1e-300])
def test_a_temperature_near_zero_takes_the_likeliest(draw: Any, temperature: float) -> None:
    logits = torch.tensor([[-1e4, 3e4, 2.9e4, -1e4], [2.0, 0.0, -1.0, 1.0]])
    for top_p in (1.0, 0.9):
        assert draw(logits, temperature=temperature, top_p=top_p).tolist() == [1, 0]


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(5, 30, generator=seeded(1))
    together = sample_each(logits, [seeded(row) for row in range(5)], top_p=0.9)
    assert together == [sample_each(logits[row : row + 1], [seeded(row)], top_p=0.9)[0] for row in range(5)]
    twice = [seeded(0), seeded(0)]
    assert len({*(sample_each(logits[:1].expand(2, -1), twice)[0] for _ in range(40))}) > 5  # generators go on


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_no_token_of_probability_zero_is_drawn(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([number], dtype=torch.float64))
    logits = torch.tensor([[-torch.inf, 0.1, 0.3, 0.2, -torch.inf]])
    assert sample_each(logits, [seeded(0)]) == [1 if number == 0 else 3]


def test_zero_temperature_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample(logits, temperature=0, top_p=0.1).tolist() == [1, 0]
    assert sample_in_rows(logits, temperature=0, top_p=0.1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be greater than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, r"prompt has shape \(1, 0\); .* at least one token"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(make_model: Any, options: dict[str, Any], message: str) -> None:
    arguments = {"prompt": torch.zeros(1, 3, dtype=torch.long), "max_tokens": 2} | options
    with pytest.raises(ValueError, match=message):
        stream(make_model("mamba2"), **arguments)
