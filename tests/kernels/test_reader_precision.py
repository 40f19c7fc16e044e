"""In narrow types, the chunked reader's error is no larger than that of the recurrence itself in the same type."""

from dataclasses import replace

import pytest
import torch


def results(read, inputs, plan, backend):
    """o and the gradient of every input and of the gate, by name."""
    inputs = inputs.leaves()
    leaves = inputs.named()
    if plan.gate is not None:
        leaves["gate"] = plan.gate.detach().to(torch.promote_types(inputs.v.dtype, torch.float32)).requires_grad_()
        plan = replace(plan, gate=leaves["gate"])
    o, _ = read(inputs, plan, backend=backend)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(o.dtype)  # exact in every type
    gradients = torch.autograd.grad(o, list(leaves.values()), do)
    return {"o": o.detach()} | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


@pytest.fixture
def assert_precise(read, assert_as_precise):
    def check(inputs, plan, dtype):
        narrow = inputs.to(dtype)
        exact = results(read, narrow.to(torch.float64), plan, "reference")
        definition, fast = (results(read, narrow, plan, backend) for backend in ("reference", "torch"))
        for name in exact:
            assert_as_precise(name, fast[name], definition[name], exact[name])

    return check


UNLIKE = {"persistence": 0.2, "key_dim": 16}
"""Keys as a model has them: 64 keys that are alike, or that share five dimensions, make the triangular system of the
delta rule badly conditioned. Its gradients (beta and decay first) then have three to five times the error of the
recurrence, still about 1e-6."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("kind", "time"), [("dynamic", 200), ("fenwick", 150), ("fixed", 65), ("dynamic", 63)])
def test_types(draw_inputs, make_plan, assert_precise, kind, time, delta, dtype):
    inputs = draw_inputs(time, 8, delta=delta, **UNLIKE)
    assert_precise(
        inputs, make_plan(kind, inputs, **({"gate": "straight_through"} if kind == "dynamic" else {})), dtype
    )


DECAYS = {
    "weak": lambda u: -1e-4 * u,
    "strong": lambda u: -5 * u,
    "resets": lambda u: torch.where(u > 0.9, -50.0, -0.01 * u),
    "complete": lambda u: torch.full_like(u, -50.0),
}


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("decay", DECAYS)
def test_decays_of_every_strength(draw_inputs, make_plan, assert_precise, decay, delta):
    """A mild decay next to a strong one keeps its digits, which differences of cumulative sums would lose."""
    inputs = draw_inputs(100, 6, delta=delta, **UNLIKE)
    uniform = torch.rand(inputs.v.shape[:3], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = replace(inputs, log_decay=DECAYS[decay](uniform))
    assert_precise(inputs, make_plan("dynamic", inputs), torch.float32)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types_of_results(draw_inputs, make_plan, read, dtype, backend):
    """The output has the type of v, gradients those of their inputs; states are float32 or wider."""
    inputs = draw_inputs(70, 4, delta=True).to(dtype)
    plan = make_plan("dynamic", inputs, gate="straight_through", backend=backend)
    found = results(read, inputs, plan, backend)
    assert {name: x.dtype for name, x in found.items() if name != "dgate"} == dict.fromkeys(
        found.keys() - {"dgate"}, dtype
    )
    _, cache = read(inputs, plan, backend=backend, return_cache=True)
    assert cache.state.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_mixed_types(draw_inputs, make_plan, read, backend):
    """Models hand over what autocast gives them: weights and decays float32, the rest narrow."""
    inputs = draw_inputs(70, 4, delta=True).to(torch.bfloat16)
    inputs = replace(inputs, slot_weight=inputs.slot_weight.float(), log_decay=inputs.log_decay.float())
    plan = make_plan("dynamic", inputs)
    found = results(read, inputs, plan, backend)
    assert found["o"].dtype == torch.bfloat16
    assert found["dq"].dtype == torch.bfloat16
    assert found["dslot_weight"].dtype == torch.float32
    all_wide = results(read, inputs.to(torch.float32), plan, backend)
    torch.testing.assert_close(found["o"], all_wide["o"].bfloat16(), rtol=0, atol=0)


def test_autocast_changes_nothing(draw_inputs, make_plan, read):
    """The op chooses its own types: float32 inputs give the same bits inside autocast, and so do their gradients."""
    inputs = draw_inputs(130, 4, delta=True).to(torch.float32)

    def outputs_and_gradients(autocast):
        leaves = inputs.leaves()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            plan = make_plan("dynamic", leaves, gate="straight_through")
            o, _ = read(leaves, plan)
        return plan.score, o, *torch.autograd.grad(o.square().sum(), list(leaves.named().values()))

    for inside, outside in zip(outputs_and_gradients(True), outputs_and_gradients(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)
