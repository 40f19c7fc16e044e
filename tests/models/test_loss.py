"""The chunked cross-entropy against torch's own, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dla_train.models.head import Head
from dla_train.models.loss import IGNORED, ROWS, linear_cross_entropy, token_losses


def inputs(rows: int, hidden: int, vocab: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, hidden, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(vocab, hidden, dtype=dtype, generator=generator).requires_grad_()
    return h, weight, torch.randint(0, vocab, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [1, 7, 30, 1000])
def test_loss_and_gradients_equal_cross_entropy(rows: int) -> None:
    h, weight, targets = inputs(30, 8, 50)
    targets[3], targets[-1] = IGNORED, IGNORED
    loss = linear_cross_entropy(h, weight, targets, rows=rows)
    expected = F.cross_entropy(h @ weight.t(), targets)
    torch.testing.assert_close(loss, expected)
    got = torch.autograd.grad(3 * loss, (h, weight))
    torch.testing.assert_close(got, torch.autograd.grad(3 * expected, (h, weight)))
    assert not got[0][3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [7, 1000])
def test_z_loss_is_in_the_gradient_and_not_in_the_result(rows: int, dtype: torch.dtype) -> None:
    h, weight, targets = inputs(30, 8, 50, dtype)
    targets[3], targets[-1] = IGNORED, IGNORED
    loss = linear_cross_entropy(h, weight, targets, rows=rows, z_loss=0.1)
    assert torch.equal(loss, linear_cross_entropy(h, weight, targets, rows=rows))
    logits = h @ weight.t()
    plain = F.cross_entropy(logits, targets)
    penalized = plain + 0.1 * logits.logsumexp(1)[targets != IGNORED].square().mean()
    got = torch.autograd.grad(3 * loss, (h, weight))
    torch.testing.assert_close(got, torch.autograd.grad(3 * penalized, (h, weight), retain_graph=True))
    without = torch.autograd.grad(3 * plain, (h, weight))
    assert all((one - other).norm() > 0.1 * other.norm() for one, other in zip(got, without, strict=True))


def test_any_leading_shape() -> None:
    h, weight, targets = inputs(30, 8, 50)
    flat = linear_cross_entropy(h, weight, targets)
    assert torch.equal(linear_cross_entropy(h.view(5, 6, 8), weight, targets.view(5, 6)), flat)
    per_token = token_losses(h.view(5, 6, 8), weight, targets.view(5, 6), rows=4)
    assert per_token.shape == (5, 6)
    torch.testing.assert_close(per_token.flatten(), F.cross_entropy(h @ weight.t(), targets, reduction="none"))
    assert not per_token.requires_grad


def test_token_losses_are_zero_where_ignored() -> None:
    h, weight, targets = inputs(6, 8, 50)
    targets[2] = IGNORED
    assert token_losses(h, weight, targets)[2] == 0


def test_large_logits_stay_finite() -> None:
    h, weight, targets = inputs(10, 8, 50, torch.float32)
    loss = linear_cross_entropy(h * 1e3, weight, targets)
    loss.backward()
    assert loss.isfinite()
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_frozen_weight_or_hidden() -> None:
    h, weight, targets = inputs(10, 8, 50)
    linear_cross_entropy(h, weight.detach(), targets).backward()
    assert h.grad is not None
    linear_cross_entropy(h.detach(), weight, targets).backward()
    assert weight.grad is not None


class LargestTensor(TorchDispatchMode):
    """Watches every operation for the largest tensor it makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.untyped_storage().nbytes() // part.element_size())
        return result


def test_logits_are_never_whole() -> None:
    h, weight, targets = inputs(512, 4, 1000, torch.float32)
    with LargestTensor() as largest:
        linear_cross_entropy(h, weight, targets, rows=16).backward()
    assert largest.numel == 16 * 1000
    with LargestTensor() as largest:
        F.cross_entropy(h @ weight.t(), targets).backward()
    assert largest.numel >= 512 * 1000  # the watch works


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_logits_of_a_long_window_are_never_whole(precision: str) -> None:
    """The paper's window and vocabulary through the head as it is trained, on tensors without memory."""
    tokens, hidden, vocab = 16_384, 64, 32_000
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with FakeTensorMode(), LargestTensor() as largest, autocast:
        head = Head(vocab, hidden)
        x = torch.empty(1, tokens, hidden, requires_grad=True)
        targets = torch.empty(1, tokens, dtype=torch.int64)
        head(x, targets, z_loss=1e-4).backward()
        assert head.weight.grad is not None
        head(x, targets, per_token=True)
    assert largest.numel == ROWS * vocab == tokens * vocab / 16


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    h, weight, targets = inputs(64, 32, 50, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(h, weight, targets, rows=16)
    expected = F.cross_entropy((h.bfloat16() @ weight.bfloat16().t()).float(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    got = torch.autograd.grad(loss, (h, weight))
    assert [gradient.dtype for gradient in got] == [torch.float32, torch.float32]
    exact = torch.autograd.grad(F.cross_entropy(h @ weight.t(), targets), (h, weight))
    for gradient, reference in zip(got, exact, strict=True):
        assert (gradient - reference).norm() < 0.02 * reference.norm()


def test_losses_of_bfloat16_states_add_up_in_float32() -> None:
    h, weight, targets = inputs(1000, 8, 50, torch.bfloat16)
    loss = linear_cross_entropy(h, weight, targets, rows=3)
    assert loss.dtype == torch.float32
    expected = token_losses(h, weight, targets).double().mean().float()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_number_of_targets_is_not_rounded(dtype: torch.dtype) -> None:
    """1 / 321 is 0.3 % off in bfloat16; the loss of a third of a step's windows counts a third."""
    h, weight, targets = inputs(321, 8, 50, dtype)
    found = torch.autograd.grad(linear_cross_entropy(h, weight, targets, rows=100) / 3, (h, weight))
    wide = [x.detach().double().requires_grad_() for x in (h, weight)]
    exact = torch.autograd.grad(F.cross_entropy(wide[0] @ wide[1].t(), targets) / 3, wide)
    for x, right in zip(found, exact, strict=True):
        assert (x.double() * right).sum() / (right * right).sum() == pytest.approx(1, abs=2e-4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    h, weight, targets = inputs(10, 8, 50)
    with pytest.raises(ValueError, match=r"targets has shape \(9,\); it must be that of the tokens, \(10,\)"):
        linear_cross_entropy(h, weight, targets[:9])
