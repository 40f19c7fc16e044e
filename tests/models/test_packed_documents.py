"""Packed documents: each gives what it gives alone, and nothing leaks from one into the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dla_train.models.documents import Documents

CU_SEQLENS = torch.tensor([0, 1, 3, 20, 27, 60])


def test_packed_equals_each_alone(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x, targets = tokens(1, 60), tokens(1, 60, seed=1)
    alone = torch.cat([model(part)[0] for part in x.split(CU_SEQLENS.diff().tolist(), 1)], 1)
    torch.testing.assert_close(model(x, cu_seqlens=CU_SEQLENS)[0], alone)

    loss = model.loss(x, targets, cu_seqlens=CU_SEQLENS)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(alone[0], targets[0]))
    parameters = list(model.parameters())
    got = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(nn.functional.cross_entropy(alone[0], targets[0]), parameters)
    torch.testing.assert_close(got, expected)


def test_an_early_document_does_not_touch_a_later_one(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x = tokens(1, 60)
    changed = x.clone()
    changed[:, :20] = tokens(1, 20, seed=9)
    before, after = (model(y, cu_seqlens=CU_SEQLENS)[0] for y in (x, changed))
    assert (before[:, 3:20] - after[:, 3:20]).abs().max() > 1e-3  # something was changed
    # Not bitwise: a chunk of the op can hold several documents, and its sums round together. float64 tells rounding
    # from a leak by ten orders of magnitude.
    torch.testing.assert_close(after[:, 20:], before[:, 20:], rtol=0, atol=1e-12)


def test_without_cu_seqlens_it_does(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case, dtype=torch.float32)
    x = tokens(1, 60)
    changed = x.clone()
    changed[:, :20] = tokens(1, 20, seed=9)
    assert (model(x)[0] - model(changed)[0])[:, 20:24].abs().max() > 1e-3


def test_no_gradient_crosses_a_document(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    inputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, x: torch.Tensor) -> None:
        x.retain_grad()
        inputs.append(x)

    model.embedding.register_forward_hook(keep)
    model(tokens(1, 60), cu_seqlens=CU_SEQLENS)[0][:, 27:].square().sum().backward()
    gradient = inputs[0].grad
    assert gradient is not None
    assert gradient[:, :27].abs().max() < 1e-12 * gradient[:, 27:].abs().max()
    assert gradient[:, 27:].abs().sum(-1).all()


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], r"cu_seqlens is \[0, 5\]; .* end at 8"),
        ([1, 8], r"cu_seqlens is \[1, 8\]; it must start at 0"),
        ([0, 3, 3, 8], r"grow at every step"),
        ([0], r"cu_seqlens is \[0\]"),
    ],
)
def test_documents_that_do_not_fit_are_refused(cu_seqlens: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Documents.of(torch.tensor(cu_seqlens), 1, 8)


def test_documents_need_one_row_and_whole_numbers() -> None:
    with pytest.raises(ValueError, match="batch of 2; packed documents need a batch of 1"):
        Documents.of(torch.tensor([0, 8]), 2, 8)
    with pytest.raises(ValueError, match=r"cu_seqlens is of type list; it must be a tensor"):
        Documents.of([0, 8], 1, 8)
    with pytest.raises(ValueError, match=r"type torch.float32; it must be a vector of int32 or int64"):
        Documents.of(torch.tensor([0.0, 8.0]), 1, 8)
