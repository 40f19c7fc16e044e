"""The chunked reader gives what the recurrence gives: outputs, states and the gradient of everything, in float64."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import Cache

TIMES = [1, 63, 64, 65, 500]


def results(read, inputs, plan, upstream, *, cache=None, cu_seqlens=None, return_cache=True, backend):
    """Outputs, final states and the gradient of every input (gates and given states included), by name."""
    inputs = inputs.leaves()
    leaves = inputs.named()
    if plan.gate is not None:
        leaves["gate"] = plan.gate.detach().double().requires_grad_()
        plan = replace(plan, gate=leaves["gate"])
    if cache is not None:
        leaves["cache.state"] = cache.state.detach().clone().requires_grad_()
        cache = replace(cache, state=leaves["cache.state"])
    o, ended = read(inputs, plan, cache=cache, cu_seqlens=cu_seqlens, return_cache=return_cache, backend=backend)
    do, dstate = upstream(o.shape), None
    total = (o * do).sum()
    found = {"o": o.detach()}
    if return_cache:
        state = ended.state_by_age()
        dstate = upstream(state.shape)
        total = total + (state * dstate).sum()
        found |= {"state": state.detach(), "tokens": ended.tokens}
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return found | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


@pytest.fixture
def assert_same(read, error):
    """Both backends agree to a hundred roundings or so; a gradient that must be there is not zero."""

    def check(inputs, plan, *, zero=(), **options):
        def upstream(shape):
            return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)

        reference, fast = (results(read, inputs, plan, upstream, backend=b, **options) for b in ("reference", "torch"))
        assert reference.keys() == fast.keys()
        for name, exact in reference.items():
            assert fast[name].shape == exact.shape, name
            assert fast[name].dtype == exact.dtype, name
            assert error(fast[name], exact) < 2e-14, name
            assert name in zero or exact.abs().max() > 1e-6, f"{name} is zero: the comparison shows nothing"

    return check


def vanishing(time, capacity, kind):
    """Gradients that are zero by definition: nothing is read of a first token's past, no gate matters to one slot."""
    zero = {"dlog_decay"} if time == 1 else set()
    return zero | ({"dgate"} if time == 1 or capacity == 1 else set())


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    ("kind", "capacity"),
    [("single", 1), ("fixed", 2), ("fixed", 15)]
    + [(kind, capacity) for kind in ("dynamic", "fenwick") for capacity in (1, 2, 15, 30)],
)
@pytest.mark.parametrize("time", TIMES)
def test_from_nothing(draw_inputs, make_plan, assert_same, time, kind, capacity, delta):
    inputs = draw_inputs(time, capacity, delta=delta, seed=time + capacity)
    plan = make_plan(kind, inputs, **({"gate": "straight_through"} if kind == "dynamic" else {}))
    assert_same(inputs, plan, zero=vanishing(time, capacity, kind))


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("kind", ["dynamic", "fenwick", "fixed"])
@pytest.mark.parametrize("time", [1, 64, 150])
def test_from_a_cache(draw_inputs, make_plan, read, assert_same, time, kind, delta):
    """All M slots hold something, in no order; without and with the states at the end."""
    inputs = draw_inputs(100 + time, 6, delta=delta, batch=2)
    past, now = inputs.tokens(0, 100), inputs.tokens(100, 100 + time)
    _, cache = read(past, make_plan(kind, past), return_cache=True)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    cache = replace(cache, state=cache.state[:, :, order], age=cache.age[:, :, order])
    plan = make_plan(kind, now, cache=cache, **({"gate": "straight_through"} if kind == "dynamic" else {}))
    assert_same(now, plan, cache=cache)
    assert_same(now, plan, cache=cache, return_cache=False)


@pytest.mark.parametrize("options", [{"decay": False}, {"decay": False, "delta": True}], ids=["plain", "delta"])
def test_without_decay(draw_inputs, make_plan, assert_same, options):
    inputs = draw_inputs(150, 6, **options)
    assert_same(inputs, make_plan("dynamic", inputs, gate="straight_through"))


@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (1, 3), (2, 6), (3, 3)])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_groups(draw_inputs, make_plan, assert_same, groups, heads, delta):
    inputs = draw_inputs(100, 6, delta=delta, groups=groups, heads=heads, batch=2)
    assert_same(inputs, make_plan("dynamic", inputs, threshold=0.4, gate="straight_through"))


@pytest.mark.parametrize(("key_dim", "value_dim"), [(1, 1), (1, 7), (7, 1), (17, 33)])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_widths(draw_inputs, make_plan, assert_same, key_dim, value_dim, delta):
    inputs = draw_inputs(100, 4, delta=delta, key_dim=key_dim, value_dim=value_dim)
    assert_same(inputs, make_plan("fixed", inputs))


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("kind", ["dynamic", "fenwick", "fixed"])
@pytest.mark.parametrize("return_cache", [False, True])
def test_packed_documents(draw_inputs, make_plan, assert_same, kind, delta, return_cache):
    """Documents that begin and end inside chunks, fill one, span several."""
    cu_seqlens = torch.tensor([0, 1, 20, 64, 65, 66, 129, 260])
    inputs = draw_inputs(260, 5, delta=delta)
    gate = {"gate": "straight_through"} if kind == "dynamic" else {}
    plan = make_plan(kind, inputs, cu_seqlens=cu_seqlens, **gate)
    assert_same(inputs, plan, cu_seqlens=cu_seqlens, return_cache=return_cache)


def test_more_slots_than_a_byte_counts(draw_inputs, make_plan, read):
    inputs = draw_inputs(200, 150, groups=1, heads=1, key_dim=2, value_dim=2)
    plan = make_plan("dynamic", inputs, threshold=0.0)
    expected, o = (read(inputs, plan, backend=backend)[0] for backend in ("reference", "torch"))
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)


def test_scale(draw_inputs, make_plan, read):
    """None stands for `K ** -0.5`; a number multiplies the queries."""
    inputs = draw_inputs(70, 4)
    plan = make_plan("dynamic", inputs)
    for backend in ("reference", "torch"):
        default, _ = read(inputs, plan, backend=backend)
        doubled, _ = read(inputs, plan, backend=backend, scale=2 * 5**-0.5)
        torch.testing.assert_close(doubled, 2 * default, rtol=1e-12, atol=0)


def test_auto_is_the_fast_path(draw_inputs, make_plan, read):
    inputs = draw_inputs(70, 4)
    plan = make_plan("dynamic", inputs)
    assert torch.equal(read(inputs, plan)[0], read(inputs, plan, backend="torch")[0])


def test_no_cache_unless_asked(draw_inputs, make_plan, read):
    inputs = draw_inputs(70, 4)
    plan = make_plan("dynamic", inputs)
    assert read(inputs, plan)[1] is None
    assert isinstance(read(inputs, plan, return_cache=True)[1], Cache)
