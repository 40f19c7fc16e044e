"""Packed documents share nothing: each gives the same result as alone."""

import numpy as np
import pytest
import torch

from dla_kernels import documents, dynamic_linear_attention

BACKENDS = ["reference", "torch"]
CU_SEQLENS = torch.tensor([0, 1, 20, 64, 65, 66, 129, 260])
"""One token, less than a chunk, up to a chunk's end, one token again twice, across chunks, several chunks."""


def gate_of(kind, **options):
    return {"gate": "straight_through", **options} if kind == "dynamic" else {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("kind", ["dynamic", "fenwick", "fixed", "single"])
@pytest.mark.parametrize("return_cache", [False, True])
def test_outputs_gradients_and_caches(draw_inputs, make_plan, read, documents_of, kind, delta, backend, return_cache):
    capacity = 1 if kind == "single" else 5
    inputs = draw_inputs(260, capacity, delta=delta)
    do = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    packed = inputs.leaves()
    plan = make_plan(kind, packed, cu_seqlens=CU_SEQLENS, **gate_of(kind, backend=backend))
    o, caches = read(packed, plan, cu_seqlens=CU_SEQLENS, return_cache=return_cache, backend=backend)
    gradients = torch.autograd.grad(o, list(packed.named().values()), do)

    for n, (begin, end) in enumerate(documents_of(CU_SEQLENS)):
        alone = inputs.tokens(begin, end).leaves()
        plan_alone = make_plan(kind, alone, **gate_of(kind, backend=backend))
        assert torch.equal(plan.shift[:, begin:end], plan_alone.shift)
        assert torch.equal(plan.score[:, begin:end], plan_alone.score)
        expected, cache = read(alone, plan_alone, return_cache=return_cache, backend=backend)
        torch.testing.assert_close(o[:, begin:end], expected, rtol=0, atol=1e-12)
        leaves = alone.named()
        expected = torch.autograd.grad(expected, list(leaves.values()), do[:, begin:end], materialize_grads=True)
        for name, whole, part in zip(leaves, gradients, expected, strict=True):
            # Gradients that came through the score are float32.
            torch.testing.assert_close(
                whole[:, begin:end], part, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
            if kind != "dynamic" or name not in ("k", "v"):
                torch.testing.assert_close(whole[:, begin:end], part, rtol=0, atol=1e-12)
        if return_cache:
            torch.testing.assert_close(caches.state_by_age()[n], cache.state_by_age()[0], rtol=0, atol=1e-12)
            assert caches.tokens[n] == end - begin


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_segmentation_at_the_end_of_each_document(draw_inputs, make_plan, documents_of, backend):
    inputs = draw_inputs(260, 5)
    final = make_plan("dynamic", inputs, cu_seqlens=CU_SEQLENS, backend=backend).final
    for n, (begin, end) in enumerate(documents_of(CU_SEQLENS)):
        alone = make_plan("dynamic", inputs.tokens(begin, end), backend=backend).final
        for name in ("open_sum", "score_sum", "count"):
            assert torch.equal(getattr(final, name)[n], getattr(alone, name)[0]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_one_document_is_no_document(draw_inputs, backend, dtype):
    inputs = draw_inputs(90, 4, delta=True)
    options = {"capacity": 4, "threshold": 0.3, "backend": backend, "return_cache": True}
    plain, cache = dynamic_linear_attention(**inputs.named(), **options)
    packed, packed_cache = dynamic_linear_attention(
        **inputs.named(), **options, cu_seqlens=torch.tensor([0, 90], dtype=dtype)
    )
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-13)
    torch.testing.assert_close(packed_cache.state, cache.state, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_documents_that_go_on(draw_inputs, thresholds, documents_of, delta, backend):
    """Each document in two pieces, packed both times, gives the same result as in one piece."""
    inputs = draw_inputs(200, 5, delta=delta)
    cu_seqlens = torch.tensor([0, 30, 31 + 10, 200])
    cuts = [10, 37, 140]  # where each document is cut
    options = {"capacity": 5, "threshold": thresholds, "backend": backend}
    whole, ended = dynamic_linear_attention(
        **inputs.named(), **options, cu_seqlens=cu_seqlens, return_cache=True
    )  # fmt: skip
    spans = [(begin, cut, end) for (begin, end), cut in zip(documents_of(cu_seqlens), cuts, strict=True)]
    cache, outputs = None, []
    for parts in ([(b, c) for b, c, _ in spans], [(c, e) for _, c, e in spans]):
        piece = inputs.map(lambda x, parts=parts: torch.cat([x[:, b:e] for b, e in parts], 1))
        lengths = torch.tensor([0] + [e - b for b, e in parts]).cumsum(0)
        o, cache = dynamic_linear_attention(
            **piece.named(), **options, cu_seqlens=lengths, cache=cache, return_cache=True
        )  # fmt: skip
        outputs.append(o.split(lengths.diff().tolist(), 1))
    pieces = [part for n in range(3) for part in (outputs[0][n], outputs[1][n])]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cache.state_by_age(), ended.state_by_age(), rtol=0, atol=1e-12)
    assert torch.equal(cache.tokens, ended.tokens)


def test_a_packed_prefill_decodes_as_a_batch(draw_inputs, thresholds):
    """The caches of N documents are the caches of a batch of N."""
    inputs = draw_inputs(100, 5)
    cu_seqlens = torch.tensor([0, 30, 41, 100])
    following = draw_inputs(6, 5, batch=3, seed=1)
    options = {"capacity": 5, "threshold": thresholds}
    _, cache = dynamic_linear_attention(**inputs.named(), **options, cu_seqlens=cu_seqlens, return_cache=True)
    batched, _ = dynamic_linear_attention(**following.named(), **options, cache=cache)
    packed, _ = dynamic_linear_attention(
        **following.map(lambda x: x.flatten(0, 1)[None]).named(), **options,
        cu_seqlens=torch.tensor([0, 6, 12, 18]), cache=cache,
    )  # fmt: skip
    torch.testing.assert_close(packed, batched.flatten(0, 1)[None], rtol=0, atol=1e-13)


def test_documents_of_a_numpy_array_that_is_filled_anew(draw_inputs):
    """Torch does not count such changes of a tensor, by which it is known elsewhere that numbers are the same."""
    inputs = draw_inputs(9, 4, delta=False, batch=1)
    buffer = np.array([0, 2, 9])
    shared = torch.from_numpy(buffer)
    for second in (2, 5):
        buffer[1] = second
        found, _ = dynamic_linear_attention(**inputs.named(), capacity=4, cu_seqlens=shared)
        expected, _ = dynamic_linear_attention(**inputs.named(), capacity=4, cu_seqlens=torch.tensor([0, second, 9]))
        assert torch.equal(found, expected)


def test_documents_on_a_gpu_are_fetched_once_and_again_when_they_change(monkeypatch):
    monkeypatch.setattr(documents, "_is_near", lambda x: False)
    cu_seqlens = torch.tensor([0, 3, 9])
    fetched = []
    fetch = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: fetched.append(x) or fetch(x))
    assert documents.ends_of(cu_seqlens) == documents.ends_of(cu_seqlens) == (0, 3, 9)
    assert len(fetched) == 1
    cu_seqlens[1] = 5
    assert documents.ends_of(cu_seqlens) == (0, 5, 9)
    assert documents.token_counts(cu_seqlens) == [5, 4]
    assert len(fetched) == 2
