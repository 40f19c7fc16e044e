"""Single tokens on the CPU: the compiled loop gives what the recurrence gives, and leaves alone what is not its own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dla_kernels import dynamic_linear_attention, host_jobs
from dla_kernels.reader import op, token_loop

KINDS = [("dynamic", 1), ("dynamic", 2), ("dynamic", 5), ("fenwick", 4), ("fenwick", 1), ("fixed", 3), ("single", 1)]


@pytest.fixture
def calls(monkeypatch):
    """How often the loop has run, with what last."""
    seen = []
    loop = token_loop.read_token
    monkeypatch.setattr(token_loop, "read_token", lambda *given: (seen.append(given), loop(*given)))
    return seen


@pytest.mark.parametrize("donates", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    ("dtype", "threads"), [(torch.float64, 1), (torch.float32, 1), (torch.float32, 3), (torch.bfloat16, 1)], ids=str
)
@pytest.mark.parametrize(("kind", "capacity"), KINDS)
def test_tokens_are_read_as_by_the_recurrence(
    draw_inputs, make_plan, read, calls, monkeypatch, kind, capacity, dtype, delta, donates, threads
):
    monkeypatch.setattr(host_jobs, "THREAD_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs = draw_inputs(52, capacity, delta=delta, batch=2).to(dtype)
    caches: dict[str, Any] = {"reference": None, "torch": None}
    for begin, end in [(0, 12), *((t, t + 1) for t in range(12, 52))]:
        piece = inputs.tokens(begin, end)
        plan = make_plan(kind, piece, cache=caches["reference"], **({"backend": "torch"} if kind == "dynamic" else {}))
        found = {}
        for backend, cache in caches.items():
            if donates and backend == "torch" and cache is not None:
                cache = cache.donated()
            found[backend], caches[backend] = read(piece, plan, cache=cache, return_cache=True, backend=backend)
        error = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(found["torch"], found["reference"], rtol=error, atol=error)
    assert len(calls) == 40 * (min(threads, 2 * inputs.v.shape[2]))
    error = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        caches["torch"].state_by_age(), caches["reference"].state_by_age(), rtol=error, atol=error
    )
    is_lazy = donates and not delta and dtype != torch.float64
    assert (caches["torch"].lag is not None) == is_lazy


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_only_a_donated_cache_is_written_to(draw_inputs, make_plan, read, calls, delta):
    inputs = draw_inputs(41, 5, delta=delta, batch=2).to(torch.float32)
    past, now = inputs.tokens(0, 40), inputs.tokens(40, 41)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    before = replace(cache, state=cache.state.clone(), age=cache.age.clone())
    plan = make_plan("dynamic", now, cache=cache)
    expected, after = read(now, plan, cache=cache, return_cache=True)
    assert torch.equal(cache.state, before.state)
    assert torch.equal(cache.age, before.age)
    assert not after.is_donated
    o, given_up = read(now, plan, cache=cache.donated(), return_cache=True)
    torch.testing.assert_close(o, expected)
    assert given_up.is_donated
    assert given_up.state.data_ptr() == cache.state.data_ptr()
    torch.testing.assert_close(given_up.state_by_age(), after.state_by_age())
    assert len(calls) == 2


def test_a_cache_that_lags_is_settled_where_it_must_not_change(draw_inputs, make_plan, read):
    inputs = draw_inputs(43, 5, batch=2).to(torch.float32)
    past, then, now = inputs.tokens(0, 40), inputs.tokens(40, 41), inputs.tokens(41, 42)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    _, expected = read(then, make_plan("dynamic", then, cache=cache), cache=cache, return_cache=True)
    _, lagging = read(then, make_plan("dynamic", then, cache=cache), cache=cache.donated(), return_cache=True)
    assert lagging.lag.any()
    plan = make_plan("dynamic", now, cache=expected)
    o, _ = read(now, plan, cache=expected, return_cache=True)
    kept = lagging.state.clone()
    found, after = read(now, plan, cache=replace(lagging, is_donated=False), return_cache=True)
    torch.testing.assert_close(found, o)
    assert torch.equal(lagging.state, kept)
    assert after.lag is None


def test_decay_over_many_steps_loses_nothing_to_rounding(draw_inputs, calls):
    """A slot that is only read for long lags by a sum of small numbers, each below what float32 would still see."""
    inputs = draw_inputs(2, 2, batch=1, heads=1, groups=1).to(torch.float32)
    options = {"capacity": 2, "return_cache": True}
    _, cache = dynamic_linear_attention(**inputs.named(), **options, threshold=0.0, backend="reference")
    old = int(cache.age[0, 0].argmax())
    lag = torch.zeros(1, 1, 2, 2)
    lag[0, 0, old, 0] = -1.0
    before = cache.state[0, 0, old].double()
    cache = replace(cache, lag=lag).donated()
    token = inputs.tokens(1, 2).named() | {"log_decay": torch.full((1, 1, 1), -2e-8)}
    with torch.no_grad():
        for _ in range(40):
            _, cache = dynamic_linear_attention(**token, **options, threshold=2.0, cache=cache, backend="torch")
    assert len(calls) == 40
    assert cache.lag[0, 0, old].double().sum().item() == pytest.approx(-1 - 40 * 2e-8, abs=1e-11)
    assert (cache.lag[0, 0, 1 - old] == 0).all(), "the open slot is written"
    settled = cache.settled().state[0, 0, old].double() / before
    assert (settled - math.exp(-1 - 40 * 2e-8)).abs().max() < 1.5e-7 * math.exp(-1), "one rounding, of the product"


@pytest.mark.parametrize("donates", [False, True], ids=["kept", "donated"])
def test_where_a_plan_sees_room_and_there_is_none_the_oldest_slots_are_added(draw_inputs, make_plan, read, donates):
    """As by the definition: a plan that was not told how many tokens came before is no reason to lose any."""
    inputs = draw_inputs(41, 3, batch=2).to(torch.float32)
    past, now = inputs.tokens(0, 40), inputs.tokens(40, 41)
    _, cache = read(past, make_plan("fixed", past), return_cache=True)
    assert cache.state_by_age()[:, :, 2].abs().sum() > 0, "all slots are in use"
    plan = make_plan("fixed", now)
    assert (plan.shift == 3).all()
    o, after = read(now, plan, cache=cache, return_cache=True, backend="reference")
    found, ended = read(now, plan, cache=cache.donated() if donates else cache, return_cache=True)
    torch.testing.assert_close(found, o)
    torch.testing.assert_close(ended.state_by_age(), after.state_by_age())


@pytest.mark.parametrize("what", ["v", "state", "gate"])
def test_what_needs_a_gradient_takes_the_recurrence(draw_inputs, make_plan, read, calls, what):
    inputs = draw_inputs(41, 5, batch=2)
    past, now = inputs.tokens(0, 40), inputs.tokens(40, 41)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    plan = make_plan("dynamic", now, cache=cache)
    if what == "v":
        now = replace(now, v=now.v.requires_grad_())
    elif what == "state":
        cache = replace(cache, state=cache.state.requires_grad_())
    else:
        plan = replace(plan, gate=plan.boundary.double().requires_grad_())
    o, _ = read(now, plan, cache=cache)
    assert o.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(read(now, plan, cache=cache)[0], o)
    assert len(calls) == 1


def test_elsewhere_the_recurrence_is_taken(draw_inputs, make_plan, read, calls, monkeypatch):
    inputs = draw_inputs(41, 5, batch=2)
    past, now = inputs.tokens(0, 40), inputs.tokens(40, 41)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    plan = make_plan("dynamic", now, cache=cache)
    expected, _ = read(now, plan, cache=cache)
    monkeypatch.setattr(op, "takes_token", lambda *_: False)
    torch.testing.assert_close(read(now, plan, cache=cache)[0], expected, rtol=0, atol=1e-13)
    assert len(calls) == 1
