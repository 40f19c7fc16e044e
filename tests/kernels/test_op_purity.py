"""The op modifies none of its arguments, depends on nothing else, and gives the same bits every time."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from dla_kernels import dynamic_linear_attention

BACKENDS = ["reference", "torch"]


def tensors_of(cache):
    found = [cache.state, cache.age, cache.tokens]
    return found + [getattr(cache.segment, f.name) for f in fields(cache.segment)] if cache.segment else found


def forward_and_backward(inputs, tau, cache, cu_seqlens, backend):
    """All results of both steps: output, cache and gradients."""
    o, ended = dynamic_linear_attention(
        **inputs.named(), capacity=5, threshold=tau, gate="straight_through", cu_seqlens=cu_seqlens, cache=cache,
        return_cache=True, backend=backend,
    )  # fmt: skip
    total = o.square().sum() + ended.state.sum()
    return [o, *tensors_of(ended), *torch.autograd.grad(total, [*inputs.named().values(), tau])]


@pytest.fixture
def setting(draw_inputs, thresholds):
    """Inputs, thresholds and a cache of two sequences, for a batch of two or two packed documents."""

    def make(packed, dtype=torch.float32):
        past = draw_inputs(60, 5, delta=True, batch=2).to(dtype)
        now = draw_inputs(120, 5, delta=True, batch=1 if packed else 2, seed=1).to(dtype)
        _, cache = dynamic_linear_attention(**past.named(), capacity=5, threshold=thresholds, return_cache=True)
        cu_seqlens = torch.tensor([0, 50, 120]) if packed else None
        return now.leaves(), thresholds.clone().requires_grad_(), cache, cu_seqlens

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_nothing_given_is_modified(setting, packed, backend, dtype):
    """Neither inputs nor the cache, by value and by torch's own version counters."""
    inputs, tau, cache, cu_seqlens = setting(packed, dtype)
    given = [*inputs.named().values(), tau, *tensors_of(cache)] + ([cu_seqlens] if packed else [])
    before = [(x.detach().clone(), x._version) for x in given]
    forward_and_backward(inputs, tau, cache, cu_seqlens, backend)
    for x, (value, version) in zip(given, before, strict=True):
        assert torch.equal(x.detach(), value)
        assert x._version == version


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_cache_shares_no_memory_with_the_old(setting, backend):
    """Otherwise a prefix cache that a caller keeps would change when someone writes into the new one."""
    inputs, tau, cache, _ = setting(packed=False)
    _, ended = dynamic_linear_attention(
        **inputs.tokens(0, 1).named(), capacity=5, threshold=tau, cache=cache, return_cache=True, backend=backend
    )
    old = {x.untyped_storage().data_ptr() for x in tensors_of(cache)}
    assert not old & {x.untyped_storage().data_ptr() for x in tensors_of(ended)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_the_same_bits_every_time(setting, packed, backend):
    first, second = (forward_and_backward(*setting(packed), backend) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)


def test_threads_play_no_part_in_the_plan(setting):
    """Sequences and heads are scanned in parallel, each by a single thread."""
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            inputs, tau, cache, _ = setting(packed=False)
            plan_results = forward_and_backward(inputs, tau, cache, None, "torch")
            found.append(plan_results)
    finally:
        torch.set_num_threads(threads)
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_memory_is_written_before_it_is_read(setting, monkeypatch):
    """Fresh memory holds NaN or the largest integer here, which must not appear in any result."""
    expected = forward_and_backward(*setting(packed=True), "torch")

    def poisoned(shape, dtype=float):
        dtype = np.dtype(dtype)
        return np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype)

    monkeypatch.setattr("dla_kernels.segmentation.host.np.empty", poisoned)
    torch.use_deterministic_algorithms(True)  # torch then fills new memory so
    try:
        found = forward_and_backward(*setting(packed=True), "torch")
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
