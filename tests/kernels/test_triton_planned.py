"""The decode step for a given plan, interpreted: token by token it gives what the definition gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dla_kernels import Cache, fenwick_plan, fixed_plan
from dla_kernels.decode.positions import plan_token
from dla_kernels.plan import JOIN

pytestmark = pytest.mark.interpret

KINDS = [("single", 1), ("fixed", 2), ("fixed", 5), ("fenwick", 1), ("fenwick", 2), ("fenwick", 6), ("dynamic", 3)]
SIZES: dict[str, Any] = {"batch": 2, "heads": 2, "groups": 1, "key_dim": 5, "value_dim": 20}


@pytest.mark.parametrize("donates", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("kind", "capacity"), KINDS)
def test_tokens_are_read_as_by_the_recurrence(
    draw_inputs, make_plan, read, watched_memory, kind, capacity, delta, donates
):
    inputs = draw_inputs(37, capacity, delta=delta, **SIZES).to(torch.float32)
    exact = inputs.to(torch.float64)
    begin = exact.tokens(0, 27)
    _, expected = read(begin, make_plan(kind, begin), return_cache=True, backend="reference")
    # slots of all ages at all places
    places = torch.stack([torch.randperm(capacity, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    places = places.view(2, 2, capacity)
    state = expected.state_by_age().float().gather(2, places[..., None, None].expand_as(expected.state)).contiguous()
    cache = replace(expected, state=state, age=places.int())
    for t in range(27, 37):
        plan = make_plan(kind, exact.tokens(t, t + 1), cache=expected)
        o, expected = read(exact.tokens(t, t + 1), plan, cache=expected, return_cache=True, backend="reference")
        past = cache.donated() if donates else cache
        before = past.state.clone()
        found, cache = read(inputs.tokens(t, t + 1), plan, cache=past, return_cache=True, backend="triton")
        torch.testing.assert_close(found.double(), o, rtol=1e-5, atol=1e-5)
        assert (cache.state.data_ptr() == past.state.data_ptr()) == donates
        assert donates or torch.equal(past.state, before), "a step must not change a cache that is not donated"
        assert (cache.lag is not None) == (donates and not delta)
        assert torch.equal(cache.age.sort(-1).values, torch.arange(capacity, dtype=torch.int32).expand_as(cache.age))
    torch.testing.assert_close(cache.state_by_age().double(), expected.state_by_age(), rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.tokens, expected.tokens)
    assert (cache.segment is None) == (kind != "dynamic")
    assert watched_memory == {"decode_planned_kernel"}


@pytest.mark.parametrize("kind", ["fixed", "fenwick", "dynamic"])
def test_a_slot_that_is_only_read_is_not_written(draw_inputs, make_plan, read, kind):
    inputs = draw_inputs(40, 6, **SIZES).to(torch.float32)
    begin = inputs.tokens(0, 26)
    _, cache = read(begin, make_plan(kind, begin), return_cache=True, backend="reference")
    cache, merges = cache.donated(), False
    for t in range(26, 37):
        token = inputs.tokens(t, t + 1)
        plan, before = make_plan(kind, token, cache=cache), cache.state.clone()
        _, cache = read(token, plan, cache=cache, return_cache=True, backend="triton")
        written = (cache.state != before).any(-1).any(-1)
        held = (before != 0).any(-1).any(-1)
        if kind == "fenwick":  # those that are added to an older one, that one, and the open one
            target = torch.clamp(plan.shift[:, 0, :, None] + 1, max=5)
            is_changed = ((cache.age < target) & held) | (cache.age == 0)
            assert torch.equal(written & (cache.age != target), is_changed)
        else:
            joins = plan.shift[:, 0] == JOIN
            assert (written.sum(-1) <= torch.where(joins, 1, 2)).all()
            merges = merges or not (joins | (written.sum(-1) < 2)).all()
    assert merges or kind == "fenwick"


@pytest.mark.parametrize("donates", [False, True], ids=["kept", "donated"])
def test_where_a_plan_sees_room_and_there_is_none_the_oldest_slots_are_added(draw_inputs, make_plan, read, donates):
    inputs = draw_inputs(41, 3, **SIZES).to(torch.float32)
    past, now = inputs.tokens(0, 40), inputs.tokens(40, 41)
    _, cache = read(past, make_plan("fixed", past), return_cache=True, backend="reference")
    assert cache.state_by_age()[:, :, 2].abs().sum() > 0, "all slots are in use"
    plan = make_plan("fixed", now)
    assert (plan.shift == 3).all()
    o, after = read(now, plan, cache=cache, return_cache=True, backend="reference")
    found, ended = read(now, plan, cache=cache.donated() if donates else cache, return_cache=True, backend="triton")
    torch.testing.assert_close(found, o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ended.state_by_age(), after.state_by_age(), rtol=1e-5, atol=1e-5)


def test_a_cache_that_lags_goes_into_any_other_call(draw_inputs, make_plan, read):
    inputs = draw_inputs(24, 4, **SIZES).to(torch.float32)
    exact, ended = read(inputs, make_plan("fixed", inputs), return_cache=True, backend="reference")
    begin = inputs.tokens(0, 8)
    _, cache = read(begin, make_plan("fixed", begin), return_cache=True, backend="reference")
    cache = cache.donated()
    for t in range(8, 12):
        token = inputs.tokens(t, t + 1)
        _, cache = read(token, make_plan("fixed", token, cache=cache), cache=cache, return_cache=True, backend="triton")
    assert (cache.lag < 0).any()
    rest = inputs.tokens(12, 24)
    for backend in ("reference", "torch", "triton"):
        plan = make_plan("fixed", rest, cache=cache)
        o, after = read(rest, plan, cache=cache, return_cache=True, backend=backend)
        torch.testing.assert_close(o, exact[:, 12:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.state_by_age(), ended.state_by_age(), rtol=1e-5, atol=1e-5)
    kept = cache.settled()
    before, token = kept.state.clone(), inputs.tokens(12, 13)
    o, _ = read(token, make_plan("fixed", token, cache=kept), cache=kept, backend="triton")
    assert torch.equal(kept.state, before)
    torch.testing.assert_close(o, exact[:, 12:13], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "fenwick", "dynamic"])
def test_a_cache_that_lags_goes_on_with_the_delta_rule(draw_inputs, make_plan, read, kind):
    """Which changes every slot, so none may stay as it is."""
    inputs = draw_inputs(24, 4, delta=True, **SIZES).to(torch.float32)
    begin, now = replace(inputs.tokens(0, 20), beta=None), inputs.tokens(20, 21)
    _, cache = read(begin.tokens(0, 8), make_plan(kind, begin.tokens(0, 8)), return_cache=True, backend="reference")
    cache = cache.donated()
    for t in range(8, 20):
        token = begin.tokens(t, t + 1)
        _, cache = read(token, make_plan(kind, token, cache=cache), cache=cache, return_cache=True, backend="triton")
    assert (cache.lag < 0).any()
    plan = make_plan(kind, now, cache=cache)
    o, after = read(now, plan, cache=cache.settled(), return_cache=True, backend="reference")
    found, ended = read(now, plan, cache=cache, return_cache=True, backend="triton")
    torch.testing.assert_close(found, o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ended.state_by_age(), after.state_by_age(), rtol=1e-5, atol=1e-5)
    assert ended.lag is None


@pytest.mark.parametrize("what", ["v", "state", "gate"])
def test_what_needs_a_gradient_takes_the_chunks(draw_inputs, make_plan, read, watched_memory, what):
    inputs = draw_inputs(9, 3, **SIZES).to(torch.float32)
    past, now = inputs.tokens(0, 8), inputs.tokens(8, 9)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True, backend="reference")
    plan = make_plan("dynamic", now, cache=cache)
    if what == "v":
        now = replace(now, v=now.v.requires_grad_())
    elif what == "state":
        cache = replace(cache, state=cache.state.requires_grad_())
    else:
        plan = replace(plan, gate=plan.boundary.float().requires_grad_())
    o, _ = read(now, plan, cache=cache, backend="triton")
    assert o.requires_grad
    assert "decode_planned_kernel" not in watched_memory
    with torch.no_grad():
        found, _ = read(now, plan, cache=cache, backend="triton")
    assert "decode_planned_kernel" in watched_memory
    torch.testing.assert_close(found, o, rtol=1e-5, atol=1e-5)


def test_a_cache_of_another_shape_is_refused(draw_inputs, make_plan, read):
    inputs = draw_inputs(2, 3, **SIZES).to(torch.float32)
    cache = Cache.in_age_order(torch.zeros(2, 2, 4, 5, 20), torch.ones(2, dtype=torch.int64), None)
    now = inputs.tokens(1, 2)
    with pytest.raises(ValueError, match="cache holds states"):
        read(now, make_plan("fixed", now, cache=cache), cache=cache, backend="triton")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("capacity", [1, 2, 3, 15, 64, 67, 200])
@pytest.mark.parametrize("block", [0, 1, 7, 16])
def test_a_single_token_has_the_shift_of_the_whole_plan(capacity, block, dtype):
    start = torch.tensor([0, 1, 2, 3, 4, 7, 8, 14, 15, 16, 48, 64, 105, 112, 1000, 1024, 1 << 20], dtype=dtype)
    if dtype == torch.int64:
        start = torch.cat((start, torch.tensor([1 << 31, 1 << 40, 3 << 44, 1 << 62])))
    sizes: dict[str, Any] = {"capacity": capacity, "start": start} | ({"block": block} if block else {})
    expected = (fixed_plan if block else fenwick_plan)(start.numel(), 1, 3, **sizes)
    shift, score = plan_token(start, 3, capacity, block)
    assert torch.equal(shift, expected.shift)
    assert torch.equal(score, expected.score)
