"""The Triton backend on a GPU: `make test-gpu`. Every type, rule and plan, every gradient.

The interpreter runs programs one after another and cannot compute in bfloat16, so races, barriers, bfloat16, large
blocks and everything that a compiler may get wrong are proven here or nowhere.
"""

from dataclasses import replace

import pytest
import torch

from dla_kernels import Cache, dynamic_linear_attention, multi_state_attention, segment
from dla_kernels.plan import JOIN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROUNDINGS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Allowed relative error: a product of the type rounds each factor, and weights, decays and states are factors: 4 eps
of 16-bit types; float32 goes through sums of thousands of terms and differences of running sums."""

RUNNING_SUMS = ("d log_decay", "d gate")
"""Sums over up to all later tokens of differences of terms: a rounding more each time the number of terms doubles, as
in test_triton_reader.py."""

PLANNED = {"backend": "reference"}
"""The definition makes the plans: the fast path of the CPU needs numba, which a GPU machine may not have."""


def results(inputs, plan, state, cu_seqlens, backend, leaf_type):
    leaves = {name: x.detach().to(leaf_type).requires_grad_() for name, x in inputs.named().items()}
    wide = torch.float64 if leaf_type == torch.float64 else torch.float32
    if plan.gate is not None:
        leaves["gate"] = plan.gate.detach().to(wide).requires_grad_()
    cache = None
    if state is not None:
        leaves["state"] = state.detach().to(wide).requires_grad_()
        cache = Cache.in_age_order(leaves["state"], torch.ones(state.shape[0], dtype=torch.int64, device="cuda"), None)
    o, ended = multi_state_attention(
        **replace(inputs, **{name: leaves[name] for name in inputs.named()}).named(),
        plan=replace(plan, gate=leaves.get("gate")), cu_seqlens=cu_seqlens, cache=cache, return_cache=True,
        backend=backend,
    )  # fmt: skip
    final = ended.state_by_age()
    generator = torch.Generator("cuda").manual_seed(1)
    total = (o.double() * torch.randn(o.shape, generator=generator, device="cuda").to(torch.bfloat16)).sum()
    total = total + (final * torch.randn(final.shape, generator=generator, device="cuda").to(torch.bfloat16)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {"o": o, "final": final} | {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}


@pytest.fixture
def check(draw_inputs, make_plan, error):
    """With `torch` in float64 (held to the definition on the CPU) as the exact value: the recurrence is too slow."""

    def compare(kind, time, capacity, dtype, *, cu_seqlens=None, cached=False, **shape):
        shape = {"heads": 4, "groups": 2, "key_dim": 64, "value_dim": 64, "seed": time} | shape
        inputs = draw_inputs(time, capacity, **shape).to(dtype)
        plan = make_plan(kind, inputs.to(torch.float32), cu_seqlens=cu_seqlens, threshold=0.4, **PLANNED)
        shift = plan.shift.cuda()
        plan = replace(plan, shift=shift, score=plan.score.cuda(), gate=(shift != JOIN).float(), final=None)
        inputs = inputs.map(lambda x: x.cuda())
        state = None
        if cached:
            n = inputs.v.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            state = torch.randn(n, inputs.v.shape[2], capacity, inputs.k.shape[3], inputs.v.shape[3], device="cuda")
        exact = results(inputs, plan, state, cu_seqlens, "torch", torch.float64)
        fast = results(inputs, plan, state, cu_seqlens, "triton", dtype)
        found = {name: error(fast[name], exact[name]) for name in fast}
        of_sums = ROUNDINGS[dtype] + time.bit_length() * torch.finfo(dtype).eps
        allowed = {name: of_sums if name in RUNNING_SUMS else ROUNDINGS[dtype] for name in found}
        wrong = {name: f"{x:.1e}" for name, x in found.items() if not x <= allowed[name]}
        assert not wrong, f"errors above {ROUNDINGS[dtype]} ({of_sums:.1e} for running sums): {wrong}"

    return compare


TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 513, 1500])
def test_any_length(check, time, delta, dtype):
    check("dynamic", time, 8, dtype, delta=delta, cached=time % 2 == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    ("kind", "capacity"), [("single", 1), ("fixed", 4), ("fenwick", 11), ("dynamic", 30), ("dynamic", 64)]
)
def test_every_plan(check, kind, capacity, delta, dtype):
    check(kind, 1300, capacity, dtype, delta=delta)  # two chunks of the longest kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (24, 40), (128, 64), (192, 384), (256, 512), (128, 128)])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_every_size(check, key_dim, value_dim, delta, dtype):
    check("dynamic", 1100, 8, dtype, delta=delta, key_dim=key_dim, value_dim=value_dim, heads=2, groups=1, cached=True)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("cached", [False, True], ids=["from nothing", "from a cache"])
def test_documents(check, cached, delta):
    documents = torch.tensor([0, 5, 300, 301, 900, 1400])
    check("dynamic", 1400, 8, torch.bfloat16, delta=delta, cached=cached, cu_seqlens=documents)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (128, 64), (192, 384)])
@pytest.mark.parametrize("threshold", [0.02, 0.4, 1.9])
def test_decisions_agree(draw_inputs, threshold, key_dim, value_dim, dtype):
    inputs = draw_inputs(700, 8, heads=2, groups=1, key_dim=key_dim, value_dim=value_dim).to(dtype)
    for _ in range(20):  # a threshold that no score is at: on either side of it, both decisions are right
        expected = segment(inputs.k, inputs.v, 8, threshold, **PLANNED)
        if (expected.score - threshold).abs().min() > 1e-4:
            break
        threshold += 1e-3
    else:
        pytest.fail("every threshold has a score beside it")
    found = segment(inputs.k.cuda(), inputs.v.cuda(), 8, threshold, backend="triton")
    torch.testing.assert_close(found.score.cpu(), expected.score, rtol=0, atol=1e-4)
    assert torch.equal(found.shift.cpu(), expected.shift)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_through_boundaries(draw_inputs, error, dtype):
    inputs = draw_inputs(300, 8, heads=2, groups=1, key_dim=64, value_dim=32).to(dtype)
    found = []
    for device, backend in (("cpu", "reference"), ("cuda", "triton")):
        k, v = (x.detach().to(device).requires_grad_() for x in (inputs.k, inputs.v))
        tau = torch.full((2,), 0.4, device=device, requires_grad=True)
        plan = segment(k, v, 8, tau, backend=backend, gate="straight_through")
        weight = torch.arange(plan.gate.numel(), device=device).view_as(plan.gate).sin()
        found.append([x.cpu() for x in torch.autograd.grad((plan.gate * weight).sum(), (k, v, tau))])
    for name, x, exact in zip(("k", "v", "tau"), found[1], found[0], strict=True):
        assert error(x, exact) < 1e-3 + 4 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_decode(draw_inputs, delta):
    inputs = draw_inputs(120, 6, delta=delta, batch=3, heads=4, groups=2, key_dim=48, value_dim=40).to(torch.float32)
    inputs = inputs.map(lambda x: x.cuda())
    options = {"capacity": 6, "threshold": 0.4}
    whole, _ = dynamic_linear_attention(**inputs.named(), **options, backend="reference")
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 60).named(), **options, return_cache=True)
    found = []
    with torch.no_grad():
        for t in range(60, 120):
            o, cache = dynamic_linear_attention(
                **inputs.tokens(t, t + 1).named(), **options, cache=cache, return_cache=True
            )
            found.append(o)
    torch.testing.assert_close(torch.cat(found, 1), whole[:, 60:], rtol=1e-3, atol=1e-4)


def test_same_bits_twice(draw_inputs, make_plan):
    """No atomics, no order of programs in the result."""
    inputs = draw_inputs(1000, 8, heads=4, groups=1, key_dim=64, value_dim=64).to(torch.bfloat16)
    plan = make_plan("dynamic", inputs.to(torch.float32), threshold=0.4, **PLANNED)
    plan = replace(plan, shift=plan.shift.cuda(), gate=(plan.shift != JOIN).float().cuda(), final=None)
    inputs = inputs.map(lambda x: x.cuda())
    first, second = (results(inputs, plan, None, None, "triton", torch.bfloat16) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
