"""The Triton segmentation, interpreted, decides as the definition does, and differentiates as autograd does."""

import pytest
import torch

from dla_kernels import Cache, dynamic_linear_attention, segment

pytestmark = pytest.mark.interpret

CLOSE = 1e-4
"""A score this near the threshold may fall on either side of it."""


@pytest.fixture
def check(draw_inputs, error):
    def compare(
        time, capacity, threshold, *, cu_seqlens=None, cached=False, gate=True, dtype=torch.float32, block_k=16, **shape
    ):
        from dla_kernels.reader.fused import configs

        shape = {"heads": 2, "groups": 1, "key_dim": 24, "value_dim": 40, "seed": time + capacity} | shape
        inputs = draw_inputs(time + 30, capacity, **shape).to(dtype)
        past, now = inputs.tokens(0, 30), inputs.tokens(30, 30 + time)
        cache = None
        if cached:
            n = now.v.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            k, v = past.k.expand(n, -1, -1, -1).contiguous(), past.v.expand(n, -1, -1, -1).contiguous()
            final = segment(k, v, capacity, threshold, backend="reference").final
            states = torch.zeros(*final.count.shape, k.shape[3], v.shape[3])
            cache = Cache.in_age_order(states, torch.full((n,), 30), final)
        weight = torch.randn(now.v.shape[:3], generator=torch.Generator().manual_seed(3))

        def run(backend, leaf_type):
            k, v = (x.detach().to(leaf_type).requires_grad_() for x in (now.k, now.v))
            tau = torch.full((v.shape[2],), threshold, requires_grad=True)
            kind = "straight_through" if gate else "hard"
            plan = segment(k, v, capacity, tau, cu_seqlens, backend, gate=kind, cache=cache)
            gradients = [torch.zeros(())] * 3
            if gate:
                gradients = torch.autograd.grad((plan.gate * weight).sum(), [k, v, tau], materialize_grads=True)
            return plan, gradients

        definition, expected = run("reference", torch.float32)
        with configs.override(tile=16, block_k=block_k, block_v=32):
            plan, found = run("triton", dtype)
        assert (definition.score - threshold).abs().min() > CLOSE, "choose another seed: this one is at the threshold"
        torch.testing.assert_close(plan.score, definition.score, rtol=0, atol=1e-5)
        assert torch.equal(plan.shift, definition.shift)
        torch.testing.assert_close(plan.final.open_sum, definition.final.open_sum, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plan.final.score_sum, definition.final.score_sum, rtol=1e-5, atol=1e-5)
        assert torch.equal(plan.final.count, definition.final.count)
        if gate:
            assert torch.equal(plan.gate, definition.gate)
            for name, x, y in zip(("k", "v", "threshold"), found, expected, strict=True):
                # float32 on both sides; what a score amplifies, 1 / I, is below 10 here
                assert error(x, y) < 10 * torch.finfo(dtype).eps + 1e-5, name

    return compare


@pytest.mark.parametrize("time", [1, 15, 16, 17, 70])
def test_any_length(check, time):
    check(time, 4, 0.4, gate=time > 1)


@pytest.mark.parametrize("capacity", [1, 2, 30])
def test_capacities(check, capacity):
    check(49, capacity, 0.4, gate=capacity > 1)


@pytest.mark.parametrize("threshold", [0.02, 1.9])
def test_boundary_at_every_token_and_at_none(check, threshold):
    check(40, 4, threshold)


@pytest.mark.parametrize("threshold", [0.8, 1.1])
def test_segments_of_many_lengths(check, threshold):
    """Shorter than a chunk of 16, and longer than one or two."""
    check(130, 4, threshold, seed=134, gate=False)


@pytest.mark.parametrize("cached", [False, True], ids=["from nothing", "from a cache"])
def test_documents(check, cached):
    check(60, 4, 0.4, cu_seqlens=torch.tensor([0, 3, 30, 31, 60]), cached=cached)


def test_rows_groups_and_a_cache(check):
    check(33, 4, 0.4, batch=2, heads=4, groups=2, cached=True)


def test_half_precision(check):
    check(40, 4, 0.4, dtype=torch.float16)


def test_smaller_blocks_of_the_sum(check, monkeypatch):
    """Where factors are in registers: two blocks of K in the stage that goes from chunk to chunk, one elsewhere."""
    from dla_kernels.segmentation.fused import scores

    monkeypatch.setattr(scores, "factors_in_registers", lambda device: True)
    check(70, 4, 1.45, cached=True, key_dim=40, block_k=64)


def test_zero_tokens_have_no_direction():
    """A token, or an open sum, of zeros: the score is that of orthogonal states."""
    k = torch.ones(1, 5, 1, 16)
    v = torch.ones(1, 5, 1, 16)
    k[:, 0] = 0.0
    v[:, 3] = 0.0
    plans = [segment(k, v, 4, 0.6, backend=backend) for backend in ("reference", "triton")]
    assert torch.equal(plans[0].shift, plans[1].shift)
    torch.testing.assert_close(plans[0].score, plans[1].score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decodes", [False, True], ids=["chunks", "one token"])
def test_numbers_below_the_normal_ones_are_zero(monkeypatch, decodes):
    """A GPU's rsqrt takes them for zero and gives infinity; the interpreter's does so here."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def flushing(self, x):
        flushed = np.where(np.abs(x.data) < np.finfo(np.float32).tiny, 0.0, x.data)
        with np.errstate(divide="ignore"):
            return TensorHandle((1.0 / np.sqrt(flushed)).astype(np.float32), x.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_rsqrt", flushing)
    k = torch.tensor([1.0, -1.0]).repeat(3)[None, :, None, None].expand(1, 6, 1, 16) * 3e-21
    v, weight = torch.ones(1, 6, 1, 16), torch.ones(1, 6, 1, 4)
    if decodes:
        with torch.no_grad():
            _, cache = dynamic_linear_attention(
                *(x[:, :5] for x in (k, k, v, weight)), 4, 0.6, return_cache=True, backend="triton"
            )
            _, cache = dynamic_linear_attention(
                *(x[:, 5:] for x in (k, k, v, weight)), 4, 0.6, cache=cache, return_cache=True, backend="triton"
            )
        scores = cache.segment.score_sum.sum()
    else:
        scores = segment(k, v, 4, 0.6, backend="triton").score.sum()
    torch.testing.assert_close(scores, torch.tensor(5 * 2**0.5))
