"""What a loss reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dla_train.models import DynamicMemory


def test_gradients_reach_every_parameter(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    model.loss(tokens(2, 40), tokens(2, 40, seed=1)).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_gradients_reach_a_learned_threshold(make_model: Any, tokens: Any, kind: str) -> None:
    model = make_model(kind, DynamicMemory(capacity=4, threshold=1.2, learn_threshold=True))
    model.loss(tokens(2, 40), tokens(2, 40, seed=1)).backward()
    for block in model.blocks:
        assert block.mixer.memory.threshold.grad.abs().sum() > 0


def test_the_loss_is_the_cross_entropy_of_the_logits(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x, targets = tokens(2, 20), tokens(2, 20, seed=1)
    targets[0, :5] = -100
    expected = F.cross_entropy(model(x)[0].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(x, targets), expected)
    per_token = model.token_losses(x, targets)
    assert not per_token.requires_grad
    torch.testing.assert_close(per_token.sum() / 35, expected.detach())


def test_a_token_sees_no_later_one(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x = tokens(1, 40)
    changed = x.clone()
    changed[:, 25:] = tokens(1, 15, seed=5)
    before, after = model(x)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :25], before[:, :25])
    assert (after[:, 25:] - before[:, 25:]).abs().amax(-1).all()


def test_bfloat16_autocast_stays_close(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case, dtype=torch.float32, init_std=0.05)
    x, targets = tokens(2, 40), tokens(2, 40, seed=1)
    exact = model.loss(x, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(x, targets)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert abs(rounded.item() - exact.item()) < 0.02
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters()
    )
