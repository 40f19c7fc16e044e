"""RMSNorm in 16 bits against float64: nothing is rounded but the inputs and, once, the result."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dla_train.models import norm
from dla_train.models.norm import GatedRMSNormDeltaNet, GatedRMSNormMamba2, RMSNorm

HALF_STEP = 2.0**-8
"""How far, relatively, one rounding to bfloat16 goes at most."""
FLOAT32 = 1e-6
"""What a few dozen float32 operations may add, of the largest number."""
WIDTH = 96
KINDS = {
    "plain": lambda: RMSNorm(WIDTH, eps=1e-5),
    "mamba2": lambda: GatedRMSNormMamba2(WIDTH, groups=1, eps=1e-5),
    "mamba2, groups": lambda: GatedRMSNormMamba2(WIDTH, groups=3, eps=1e-5),
    "gated deltanet": lambda: GatedRMSNormDeltaNet(WIDTH, eps=1e-5),
}


def made(kind: str) -> tuple[Any, list[Tensor], Tensor]:
    """A norm in bfloat16 with a weight around 1, its inputs, and a gradient of its output."""
    draw = torch.Generator().manual_seed(0)
    module = KINDS[kind]()
    torch.nn.init.normal_(module.weight, 1.0, 0.3, generator=draw)
    count = 1 if kind == "plain" else 2
    x, *others = (torch.randn(count + 1, 7, 33, WIDTH, generator=draw) * 3).bfloat16()
    return module.bfloat16(), [x, *others[:-1]], others[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_in_bfloat16_are_those_of_float64_rounded_once(kind: str) -> None:
    module, inputs, dy = made(kind)
    exact = KINDS[kind]().double()
    exact.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    given = [x.clone().requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    y, expected = module(*given), exact(*wide)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y, [*given, module.weight], dy)
    right = torch.autograd.grad(expected, [*wide, exact.weight], dy.double())
    for ours, theirs in zip((y, *found), (expected, *right), strict=True):
        allowed = HALF_STEP * theirs.abs() + FLOAT32 * theirs.abs().max()
        assert ((ours.double() - theirs).abs() <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
def test_torch_gets_input_and_weight_of_one_type_which_its_fused_kernel_needs(kind: str, monkeypatch: Any) -> None:
    module, inputs, _ = made(kind)
    seen = []

    def watched(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        seen.append({tensor.dtype for tensor in (x, weight) if tensor is not None})
        return F.rms_norm(x, shape, weight, eps)

    for name in ("rms_norm", "gated_norm"):
        functions = {"rms_norm": staticmethod(watched), "silu": F.silu}
        monkeypatch.setattr(import_module(f"dla_kernels.layers.{name}"), "F", type("Functional", (), functions))
    module(*inputs)
    assert seen == [{torch.float32}]


@pytest.mark.parametrize("fused", [False, True], ids=["ours", "another kernel"])
def test_norms_of_blocks_give_products_their_type(fused: bool, make_model: Any, tokens: Any) -> None:
    """The last one does not: the head multiplies the gradient of its input by a factor, in the type of the input."""
    model = make_model("mamba2", "dynamic", dtype=torch.float32)
    types: dict[str, torch.dtype] = {}

    def noting(name: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, given, y: types.update({name: y.dtype})

    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.kernel = (lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps)) if fused else None
            module.register_forward_hook(noting(name))
    model(tokens(1, 5))
    assert set(types.values()) == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens(1, 5))
    assert types.pop("norm") == torch.float32
    assert set(types.values()) == {torch.bfloat16}


def test_a_compiler_gets_the_norm_in_torch(monkeypatch: Any) -> None:
    """It fuses that with what is around it."""
    backends = []

    def watched(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None, backend: str) -> Tensor:
        backends.append(backend)
        return x * weight

    monkeypatch.setattr(norm, "rms_norm", watched)
    module, [x], _ = made("plain")
    module(x)
    torch.compile(module, backend="eager", fullgraph=True)(x)
    assert backends == ["auto", "torch"]


def test_every_norm_has_the_epsilon_of_the_model(make_model: Any, any_case: tuple[str, str]) -> None:
    norms = [module for module in make_model(*any_case, norm_eps=0.25).modules() if hasattr(module, "eps")]
    assert len(norms) >= 2 * 2 + 1, "two in each block, one before the head"
    assert {norm.eps for norm in norms} == {0.25}
