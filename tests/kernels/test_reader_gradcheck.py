"""The chunked reader's gradients against finite differences, without any other implementation."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import Cache


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("kind", "time"), [("dynamic", 5), ("dynamic", 67), ("fenwick", 67), ("fixed", 130)])
def test_every_input_and_the_states(draw_inputs, make_plan, read, kind, time, delta):
    """For a given plan; every entry for 5 tokens, random directions (fast mode) beyond one chunk."""
    capacity = 3
    inputs = draw_inputs(time, capacity, delta=delta, groups=1, heads=2, key_dim=3, value_dim=2)
    plan = make_plan(kind, inputs, **({"threshold": 0.3} if kind == "dynamic" else {}))
    state = torch.randn(1, 2, capacity, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = inputs.leaves().named() | {"state": state.requires_grad_()}

    def function(*values):
        named = dict(zip(leaves, values, strict=True))
        cache = Cache.in_age_order(named.pop("state"), torch.tensor([9]), None)
        o, ended = read(replace(inputs, **named), plan, cache=cache, return_cache=True, backend="torch")
        return o, ended.state

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=time > 5)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_packed_documents(draw_inputs, make_plan, read, delta):
    cu_seqlens = torch.tensor([0, 3, 64, 65, 90])
    inputs = draw_inputs(90, 3, delta=delta, groups=1, heads=2, key_dim=3, value_dim=2)
    plan = make_plan("dynamic", inputs, cu_seqlens=cu_seqlens, threshold=0.3)
    leaves = inputs.leaves().named()

    def function(*values):
        named = dict(zip(leaves, values, strict=True))
        return read(replace(inputs, **named), plan, cu_seqlens=cu_seqlens, backend="torch")[0]

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("name", ["q", "k", "v", "slot_weight", "log_decay", "beta"])
def test_only_one_input_needs_a_gradient(draw_inputs, make_plan, read, name):
    """The others may be constants; the gradient is the same."""
    inputs = draw_inputs(100, 4, delta=True)
    plan = make_plan("dynamic", inputs)
    leaves = inputs.leaves()
    o, _ = read(leaves, plan)
    expected = torch.autograd.grad(o.sum(), leaves.named()[name])[0]
    alone = inputs.named()[name].clone().requires_grad_()
    o, _ = read(replace(inputs, **{name: alone}), plan)
    assert torch.equal(torch.autograd.grad(o.sum(), alone)[0], expected)
