"""`gate="straight_through"`: the hard decision forward, the derivative of `sigmoid((I_t - tau) / width)` backward."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import dynamic_linear_attention, multi_state_attention, segment
from dla_kernels.plan import SegmentState

BACKENDS = ["reference", "torch"]
WIDTH = 0.3


def soft_gate(keys, values, t, members, tau):
    """`sigmoid((I_t - tau) / width)` in float64 for token t after a segment of the given tokens; keys `[T, K]`."""
    own = torch.outer(keys[t], values[t])
    total = keys[members].detach().T @ values[members].detach()
    score = (own / own.norm() - total / total.norm()).norm()
    return torch.sigmoid((score - tau) / WIDTH)


def open_segments(shift):
    """For each token, the tokens of the segment that is open before it."""
    members, found = [], []
    for t, a in enumerate(shift):
        found.append(members)
        members = [t] if a != -1 else [*members, t]
    return found


def finite_difference(function, x):
    """Central differences of a scalar function of `x`, entry by entry; x is as it was afterwards."""
    gradient, flat = torch.zeros_like(x), x.view(-1)
    for i in range(flat.numel()):
        step, at = 1e-5, flat[i].item()
        flat[i] = at + step
        above = function()
        flat[i] = at - step
        below = function()
        flat[i] = at
        gradient.view(-1)[i] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 1, 8, 14])], ids=["one", "packed"])
def test_derivative_against_finite_differences(draw_inputs, documents_of, backend, cu_seqlens):
    """Every gate of 14 tokens with its own upstream gradient; the open segment stays as it is while a token moves."""
    inputs = draw_inputs(14, 4, key_dim=3, value_dim=2)
    k, v = (inputs.k * 1.7).requires_grad_(), inputs.v.clone().requires_grad_()
    tau = torch.tensor([0.2, 0.3, 0.5, 1.0], requires_grad=True)
    plan = segment(k, v, 4, tau, cu_seqlens, backend, gate="straight_through", gate_width=WIDTH)
    assert plan.boundary.float().mean() < 0.9
    assert torch.equal(plan.gate != 0, plan.boundary & (plan.score > 0))
    upstream = torch.randn(plan.gate.shape, generator=torch.Generator().manual_seed(1))
    dk, dv, dtau = torch.autograd.grad(plan.gate, (k, v, tau), upstream)

    expected = [torch.zeros_like(k), torch.zeros_like(v), torch.zeros(4, dtype=torch.float64)]
    keys, values = k.detach(), v.detach()
    for h in range(4):
        for begin, end in [(0, 14)] if cu_seqlens is None else documents_of(cu_seqlens):
            key, value = keys[0, begin:end, h // 2], values[0, begin:end, h]
            before = open_segments(plan.shift[0, begin:end, h].tolist())
            for t in range(1, end - begin):
                level = tau[h].detach().double().clone()

                def gate(t=t, key=key, value=value, members=before[t], level=level):
                    return soft_gate(key, value, t, members, level).item()

                weight = upstream[0, begin + t, h].item()
                expected[0][0, begin + t, h // 2] += weight * finite_difference(gate, key[t])
                expected[1][0, begin + t, h] += weight * finite_difference(gate, value[t])
                expected[2][h] += weight * finite_difference(gate, level[None])[0]
    for found, exact in zip((dk, dv, dtau.double()), expected, strict=True):
        assert exact.abs().max() > 0.1
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("time", "capacity"), [(1, 15), (63, 2), (64, 15), (65, 1), (65, 2), (65, 15), (300, 15)])
def test_torch_equals_reference(draw_inputs, thresholds, error, time, capacity, delta):
    """Through both steps: the gradients of k, v and the thresholds with all that reaches them. Scores are float32, and
    so are the gradients through them."""
    inputs = draw_inputs(time, capacity, delta=delta)
    found = []
    for backend in BACKENDS:
        leaves, tau = inputs.leaves(), thresholds.clone().requires_grad_()
        o, _ = dynamic_linear_attention(
            **leaves.named(),
            capacity=capacity,
            threshold=tau,
            gate="straight_through",
            gate_width=WIDTH,
            backend=backend,
        )
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        leaves = leaves.named() | {"threshold": tau}
        gradients = torch.autograd.grad(o, list(leaves.values()), do, materialize_grads=True)
        found.append(dict(zip(leaves, gradients, strict=True)))
    reference, fast = found
    for name, exact in reference.items():
        through_scores = name in ("k", "v", "threshold")
        assert error(fast[name], exact) < (5e-5 if through_scores else 1e-13), name
    assert (reference["threshold"].abs().max() > 1e-3) == (time > 1 and capacity > 1)


def test_both_steps_at_once_are_the_two_after_one_another(draw_inputs, thresholds):
    inputs = draw_inputs(40, 4)
    gradients = []
    for is_one_call in (True, False):
        leaves, tau = inputs.leaves(), thresholds.clone().requires_grad_()
        gate = {"gate": "straight_through", "gate_width": WIDTH}
        if is_one_call:
            o, _ = dynamic_linear_attention(**leaves.named(), capacity=4, threshold=tau, scale=0.7, **gate)
        else:
            plan = segment(leaves.k, leaves.v, 4, tau, **gate)
            o, _ = multi_state_attention(**leaves.named(), plan=plan, scale=0.7)
        gradients.append(torch.autograd.grad(o.square().sum(), [*leaves.named().values(), tau]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(("backend", "time"), [("reference", 24), ("torch", 150)])
def test_rows_of_a_batch_are_differentiated_as_each_alone(draw_inputs, thresholds, backend, time):
    """Through both steps; the thresholds, which all rows share, get the sum."""
    inputs = draw_inputs(time, 4, batch=3)
    options = {"capacity": 4, "gate": "straight_through", "gate_width": WIDTH, "backend": backend}
    do = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for rows in (slice(0, 3), *(slice(row, row + 1) for row in range(3))):
        leaves, tau = inputs.map(lambda x, rows=rows: x[rows]).leaves(), thresholds.clone().requires_grad_()
        o, _ = dynamic_linear_attention(**leaves.named(), threshold=tau, **options)
        named = leaves.named() | {"threshold": tau}
        found.append(dict(zip(named, torch.autograd.grad(o, list(named.values()), do[rows]), strict=True)))
    together, *alone = found
    for name, gradient in together.items():
        parts = [one[name] for one in alone]
        expected = sum(parts) if name == "threshold" else torch.cat(parts)
        assert all(part.abs().max() > 1e-4 for part in parts), name
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_that_go_on_from_a_cache(draw_inputs, thresholds, error, backend):
    """Of two packed documents the second is cut in two; the first one is new, and its first token decides nothing."""
    inputs, cu_seqlens = draw_inputs(70, 5), torch.tensor([0, 30, 70])
    options = {"gate": "straight_through", "gate_width": WIDTH, "backend": backend}
    upstream = torch.randn(1, 70, 4, generator=torch.Generator().manual_seed(1))
    upstream[:, 30:50] = 0
    whole = inputs.leaves()
    gates = segment(whole.k, whole.v, 5, thresholds, cu_seqlens, **options).gate
    expected = torch.autograd.grad(gates, (whole.k, whole.v), upstream)
    past = inputs.tokens(30, 50)
    _, cache = dynamic_linear_attention(
        **past.named(), capacity=5, threshold=thresholds, return_cache=True, backend=backend
    )
    assert cache.segment is not None
    nothing = {name: torch.zeros_like(value) for name, value in vars(cache.segment).items()}
    segments = SegmentState(**{name: torch.cat((nothing[name], value)) for name, value in vars(cache.segment).items()})
    both = replace(cache, segment=segments)
    left = torch.tensor([*range(30), *range(50, 70)])
    now = inputs.map(lambda x: x[:, left]).leaves()
    gates = segment(now.k, now.v, 5, thresholds, torch.tensor([0, 30, 50]), cache=both, **options).gate
    gradients = torch.autograd.grad(gates, (now.k, now.v), upstream[:, left])
    for gradient, exact in zip(gradients, expected, strict=True):
        assert exact[:, 50].abs().max() > 0
        assert not exact[:, 0].any()
        assert error(gradient, exact[:, left]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_going_on_from_a_cache(draw_inputs, thresholds, error, backend):
    """A first token that has a past decides like any other: the derivative of one call, cut in two."""
    inputs = draw_inputs(80, 5)
    options = {"gate": "straight_through", "gate_width": WIDTH, "backend": backend}
    upstream = torch.randn(1, 80, 4, generator=torch.Generator().manual_seed(1))
    upstream[:, :50] = 0
    whole = inputs.leaves()
    gates = segment(whole.k, whole.v, 5, thresholds, **options).gate
    expected = torch.autograd.grad(gates, (whole.k, whole.v), upstream)
    past, now = inputs.tokens(0, 50), inputs.tokens(50, 80).leaves()
    _, cache = dynamic_linear_attention(
        **past.named(), capacity=5, threshold=thresholds, return_cache=True, backend=backend
    )
    gates = segment(now.k, now.v, 5, thresholds, cache=cache, **options).gate
    gradients = torch.autograd.grad(gates, (now.k, now.v), upstream[:, 50:])
    for gradient, exact in zip(gradients, expected, strict=True):
        assert exact[:, 50].abs().max() > 0
        assert error(gradient, exact[:, 50:]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("only", ["threshold", "k", "v"])
def test_only_one_input_needs_a_gradient(draw_inputs, thresholds, backend, only):
    inputs = draw_inputs(40, 4)
    given = {"k": inputs.k, "v": inputs.v, "threshold": thresholds}
    every = {name: x.clone().requires_grad_() for name, x in given.items()}
    options = {"capacity": 4, "backend": backend, "gate": "straight_through"}
    expected = torch.autograd.grad(segment(**every, **options).gate.sum(), every[only])[0]
    alone = given | {only: given[only].clone().requires_grad_()}
    gradient = torch.autograd.grad(segment(**alone, **options).gate.sum(), alone[only])[0]
    assert gradient.abs().max() > 0
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_threshold_for_all_heads_sums_their_gradients(draw_inputs, backend):
    inputs = draw_inputs(40, 4)
    options = {"backend": backend, "gate": "straight_through"}
    one, each = torch.tensor(0.4, requires_grad=True), torch.full((4,), 0.4, requires_grad=True)
    segment(inputs.k, inputs.v, 4, one, **options).gate.sum().backward()
    segment(inputs.k, inputs.v, 4, each, **options).gate.sum().backward()
    torch.testing.assert_close(one.grad, each.grad.sum(), rtol=1e-5, atol=0)
    assert (one.grad < 0).all()  # a higher threshold, fewer boundaries


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hard_plan_carries_no_gradient(draw_inputs, thresholds, backend):
    inputs = draw_inputs(40, 4).leaves()
    plan = segment(inputs.k, inputs.v, 4, thresholds.requires_grad_(), backend=backend)
    assert plan.gate is None
    assert not plan.score.requires_grad
    assert not plan.final.open_sum.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_state_carries_no_gradient(draw_inputs, backend):
    inputs = draw_inputs(40, 4).leaves()
    plan = segment(inputs.k, inputs.v, 4, 0.4, backend=backend, gate="straight_through")
    assert plan.gate.requires_grad
    for x in (plan.score, plan.final.open_sum, plan.final.score_sum):
        assert not x.requires_grad
