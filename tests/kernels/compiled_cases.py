"""What compiled kernels must compute, on a GPU (test_triton_gpu.py) or executed on the CPU (test_triton_executed.py).

The exact value of a read is that of backend `torch` in float64, which CPU tests compare with the definition: the
recurrence is too slow here. Decisions, gates and decoding are compared with the definition itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_kernels import Cache, Plan, dynamic_linear_attention, multi_state_attention, segment
from dla_kernels.plan import JOIN
from dla_kernels.self_check.finding import OP_ROUNDINGS, allowed_of_op, relative_error
from tests.kernels.inputs import Inputs, inputs_of, plan_of

TYPES = [torch.float32, torch.float16, torch.bfloat16]
SOLVED = ("d beta",)
"""A difference of two sums that nearly cancel without decay, of tiles solved backward in tf32, which is no more precise
than float16: twice the error is allowed there (K 16 and 24 at 900 tokens: 5e-3, where the other gradients have
1e-3)."""
PLANNED: dict[str, Any] = {"backend": "reference"}
"""Plans are made by the definition: the fast path on the CPU needs numba, which a GPU machine may not have."""


def results(
    inputs: Inputs, plan: Plan, state: Tensor | None, cu_seqlens: Tensor | None, backend: str, leaf_type: torch.dtype
) -> dict[str, Tensor]:
    """Output, final state and all gradients by name, for leaves of a type."""
    device = inputs.v.device
    leaves = {name: x.detach().to(leaf_type).requires_grad_() for name, x in inputs.named().items()}
    wide = torch.float64 if leaf_type == torch.float64 else torch.float32
    if plan.gate is not None:
        leaves["gate"] = plan.gate.detach().to(wide).requires_grad_()
    cache = None
    if state is not None:
        leaves["state"] = state.detach().to(wide).requires_grad_()
        tokens = torch.ones(state.shape[0], dtype=torch.int64, device=device)
        cache = Cache.in_age_order(leaves["state"], tokens, None)
    o, ended = multi_state_attention(
        **replace(inputs, **{name: leaves[name] for name in inputs.named()}).named(),
        plan=replace(plan, gate=leaves.get("gate")), cu_seqlens=cu_seqlens, cache=cache, return_cache=True,
        backend=backend,
    )  # fmt: skip
    assert ended is not None
    final = ended.state_by_age()
    generator = torch.Generator(device).manual_seed(1)

    def product(x: Tensor) -> Tensor:
        return (x.double() * torch.randn(x.shape, generator=generator, device=device).to(torch.bfloat16)).sum()

    gradients = torch.autograd.grad(product(o) + product(final), list(leaves.values()), materialize_grads=True)
    return {"o": o, "final": final} | {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}


def check_reading(
    device: str, kind: str, time: int, capacity: int, dtype: torch.dtype, *, cu_seqlens: Tensor | None = None,
    cached: bool = False, **shape: Any,
) -> None:  # fmt: skip
    """Check output, state and every gradient for one plan and type."""
    shape = {"heads": 4, "groups": 2, "key_dim": 64, "value_dim": 64, "seed": time} | shape
    inputs = inputs_of(time, capacity, **shape).to(dtype)
    plan = plan_of(kind, inputs.to(torch.float32), cu_seqlens=cu_seqlens, threshold=0.4, **PLANNED)
    shift = plan.shift.to(device)
    plan = replace(plan, shift=shift, score=plan.score.to(device), gate=(shift != JOIN).float(), final=None)
    inputs = inputs.map(lambda x: x.to(device))
    state = None
    if cached:
        n = inputs.v.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        sizes = (n, inputs.v.shape[2], capacity, inputs.k.shape[3], inputs.v.shape[3])
        state = torch.randn(sizes, generator=torch.Generator(device).manual_seed(2), device=device)
    exact = results(inputs, plan, state, cu_seqlens, "torch", torch.float64)
    fast = results(inputs, plan, state, cu_seqlens, "triton", dtype)
    # a gate that nothing depends on: if the exact value is nothing, the error counts absolutely
    exact = {name: torch.where(x.abs() < 1e-12, 0.0, x) for name, x in exact.items()}
    found = {name: relative_error(fast[name], exact[name]) for name in fast}
    allowed = {name: allowed_of_op(name, dtype, time) for name in found}
    if dtype == torch.float16:
        allowed |= {name: 2 * OP_ROUNDINGS[dtype] for name in SOLVED if name in found}
    wrong = {name: f"{x:.1e}, allowed {allowed[name]:.1e}" for name, x in found.items() if not x <= allowed[name]}
    assert not wrong, wrong


def undoubted(inputs: Inputs, plan: Plan, threshold: float) -> bool:
    """Whether no score is at the threshold, where both decisions are right, and no two merges are equally good up to
    rounding."""
    if (plan.score - threshold).abs().min() <= 1e-4:
        return False
    for seed in range(2):
        noise = torch.Generator().manual_seed(seed)
        k, v = (
            x.double() * (1 + 4e-6 * torch.randn(x.shape, generator=noise, dtype=torch.float64))
            for x in (inputs.k, inputs.v)
        )
        if not torch.equal(segment(k, v, plan.capacity, threshold, **PLANNED).shift, plan.shift):
            return False
    return True


def check_decisions(
    device: str, threshold: float, dtype: torch.dtype, *, time: int = 700,
    **shape: Any,
) -> None:  # fmt: skip
    """Check scores, boundaries and merges, on inputs that leave no doubt about them (`undoubted`)."""
    for seed in range(20):
        inputs = inputs_of(time, 8, heads=2, groups=1, seed=seed, **shape).to(dtype)
        expected = segment(inputs.k, inputs.v, 8, threshold, **PLANNED)
        if undoubted(inputs, expected, threshold):
            break
    else:
        pytest.fail("all inputs have a score at the threshold, or pairs of slots that are as good to merge")
    found = segment(inputs.k.to(device), inputs.v.to(device), 8, threshold, backend="triton")
    torch.testing.assert_close(found.score.cpu(), expected.score, rtol=0, atol=1e-4)
    assert torch.equal(found.shift.cpu(), expected.shift)


def check_gate(device: str, dtype: torch.dtype, **shape: Any) -> None:
    """Check the gradient through boundaries."""
    inputs = inputs_of(300, 8, heads=2, groups=1, **{"key_dim": 64, "value_dim": 32} | shape).to(dtype)
    found = []
    for place, backend in (("cpu", "reference"), (device, "triton")):
        k, v = (x.detach().to(place).requires_grad_() for x in (inputs.k, inputs.v))
        tau = torch.full((2,), 0.4, device=place, requires_grad=True)
        plan = segment(k, v, 8, tau, backend=backend, gate="straight_through")
        assert plan.gate is not None
        weight = torch.arange(plan.gate.numel(), device=place).view_as(plan.gate).sin()
        found.append([x.cpu() for x in torch.autograd.grad((plan.gate * weight).sum(), (k, v, tau))])
    for name, x, exact in zip(("k", "v", "tau"), found[1], found[0], strict=True):
        assert relative_error(x, exact) < 1e-3 + 4 * torch.finfo(dtype).eps, name


def check_gates_of_a_long_sequence(device: str, kind: str, capacity: int, *, delta: bool) -> None:
    """Check the gates' gradient at 4,096 tokens in bfloat16: a sum whose roundings must not accumulate. They did, to
    7e-3 and more, when sums over rows and columns were rounded separately."""
    inputs = inputs_of(4096, capacity, heads=1, groups=1, key_dim=64, value_dim=32, batch=1, delta=delta, seed=3)
    inputs = inputs.to(torch.bfloat16)
    plan = plan_of(kind, inputs)
    inputs, shift = inputs.map(lambda x: x.to(device)), plan.shift.to(device)
    plan = replace(plan, shift=shift, score=plan.score.to(device), gate=(shift != JOIN).float(), final=None)
    exact = results(inputs, plan, None, None, "torch", torch.float64)["d gate"]
    found = results(inputs, plan, None, None, "triton", torch.bfloat16)["d gate"]
    assert relative_error(found, exact) < 5e-3


def check_decode(
    device: str, delta: bool, dtype: torch.dtype = torch.float32, *, tokens: int = 60, donated: bool = False
) -> None:
    """Check decoding token by token after a prefill, against one call of the definition."""
    sizes = {"batch": 3, "heads": 4, "groups": 2, "key_dim": 48, "value_dim": 40}
    inputs = inputs_of(60 + tokens, 6, delta=delta, **sizes).to(dtype).map(lambda x: x.to(device))
    options: dict[str, Any] = {"capacity": 6, "threshold": 0.4}
    whole, _ = dynamic_linear_attention(**inputs.to(torch.float32).named(), **options, **PLANNED)
    options |= {"backend": "triton", "return_cache": True}
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 60).named(), **options)
    found = []
    with torch.no_grad():
        for t in range(60, 60 + tokens):
            assert cache is not None
            past = cache.donated() if donated else cache
            o, cache = dynamic_linear_attention(**inputs.tokens(t, t + 1).named(), **options, cache=past)
            found.append(o)
    rtol, atol = (1e-3, 1e-4) if dtype == torch.float32 else (3e-2, 3e-2)
    torch.testing.assert_close(torch.cat(found, 1).float(), whole[:, 60:], rtol=rtol, atol=atol)


def check_planned_decode(
    device: str, kind: str, capacity: int, delta: bool, dtype: torch.dtype = torch.float32, *, begin: int = 20,
    tokens: int = 60, donated: bool = False,
) -> None:  # fmt: skip
    """The same for a plan by position, which is made token by token, too."""
    sizes = {"batch": 3, "heads": 4, "groups": 2, "key_dim": 48, "value_dim": 40}
    inputs = inputs_of(begin + tokens, capacity, delta=delta, **sizes).to(dtype)
    wide = inputs.to(torch.float32)
    whole, _ = multi_state_attention(**wide.named(), plan=plan_of(kind, wide), backend="reference")
    inputs = inputs.map(lambda x: x.to(device))

    def piece(first: int, last: int, cache: Cache | None) -> tuple[Tensor, Cache]:
        given = inputs.tokens(first, last)
        plan = plan_of(kind, given, cache=cache, device=device)
        o, after = multi_state_attention(**given.named(), plan=plan, cache=cache, return_cache=True, backend="triton")
        assert after is not None
        return o, after

    _, cache = piece(0, begin, None)
    found = []
    with torch.no_grad():
        for t in range(begin, begin + tokens):
            o, cache = piece(t, t + 1, cache.donated() if donated else cache)
            found.append(o.cpu())
    rtol, atol = (1e-3, 1e-4) if dtype == torch.float32 else (3e-2, 3e-2)
    torch.testing.assert_close(torch.cat(found, 1).float(), whole[:, begin:], rtol=rtol, atol=atol)
