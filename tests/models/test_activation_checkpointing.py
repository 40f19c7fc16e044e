"""Blocks that are computed again give the same loss and gradients, bit by bit, and keep less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_train.models import LanguageModel
from tests.operator_calls import Calls


def run(
    model: LanguageModel, x: Tensor, y: Tensor, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients by name, and bytes saved for the backward."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(x, y, cu_seqlens)
    kept = sum(storage.nbytes() for storage in storages.values())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), dict(zip(dict(model.named_parameters()), gradients, strict=True)), kept


def forwards(model: LanguageModel) -> list[int]:
    """A list that gets the index of a block whenever that block runs."""
    seen: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _module, _inputs, index=index: seen.append(index))
    return seen


@pytest.mark.parametrize("selective", [False, True], ids=["full", "selective"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "documents"])
def test_same_loss_and_gradients_with_less_kept(
    make_model: Any, tokens: Any, any_case: Any, packed: bool, selective: bool
) -> None:
    model = make_model(*any_case, dtype=torch.float32, layers=3)
    x, y = tokens(1, 80), tokens(1, 80, seed=1)
    cu_seqlens = torch.tensor([0, 5, 41, 80]) if packed else None
    loss, gradients, kept = run(model, x, y, cu_seqlens)
    model.recompute_blocks(1, selective=selective)
    again, found, kept_less = run(model, x, y, cu_seqlens)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, found[name]), name
    if not selective:  # what that keeps, autograd does not know of: tests/estimate/test_activations.py
        assert kept_less < 0.4 * kept


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet", "attention"])
def test_products_that_are_kept_are_not_computed_again(make_model: Any, tokens: Any, kind: str) -> None:
    model = make_model(kind, "dynamic", layers=3)
    x, y = tokens(1, 40), tokens(1, 40, seed=1)

    def products(**how: Any) -> int:
        model.recompute_every = None
        if how:
            model.recompute_blocks(**how)
        loss = model.loss(x, y)
        with Calls() as calls:
            loss.backward()
        return calls.number["aten::mm"]

    least = products()
    assert products(every=1, selective=True) == least < products(every=1)


@pytest.mark.parametrize(("every", "again"), [(1, [2, 1, 0]), (2, [2, 0]), (3, [0])])
def test_every_nth_block_runs_again_in_the_backward(make_model: Any, tokens: Any, every: int, again: list[int]) -> None:
    model = make_model("mamba2", "dynamic", layers=3)
    seen = forwards(model)
    model.recompute_blocks(every)
    loss = model.loss(tokens(1, 20), tokens(1, 20, seed=1))
    assert seen == [0, 1, 2]
    loss.backward()
    assert seen == [0, 1, 2, *again]


def test_every_is_a_number_of_blocks(make_model: Any) -> None:
    with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
        make_model("mamba2", "dynamic").recompute_blocks(0)


def test_without_a_gradient_or_with_a_cache_nothing_is_different(make_model: Any, tokens: Any) -> None:
    model = make_model("gated_deltanet", "dynamic")
    x = tokens(1, 20)
    with torch.no_grad():
        expected, _ = model(x)
    model.recompute_blocks(1)
    with torch.no_grad():
        assert torch.equal(model(x)[0], expected)
    _, cache = model(x[:, :12], return_cache=True)
    torch.testing.assert_close(model(x[:, 12:], cache=cache)[0], expected[:, 12:])


def test_together_with_compiled_blocks(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2", "dynamic", dtype=torch.float32)
    x, y = tokens(2, 20), tokens(2, 20, seed=1)
    loss, gradients, kept = run(model, x, y)
    both = copy.deepcopy(model)
    both.recompute_blocks(1)
    both.compile_blocks(backend="aot_eager")
    torch.compiler.reset()
    again, found, kept_less = run(both, x, y)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert kept_less < 0.6 * kept
