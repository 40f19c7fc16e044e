"""A sequence in pieces, down to single tokens, gives the result of one call."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import dynamic_linear_attention, segment

BACKENDS = ["reference", "torch"]
KINDS = [("dynamic", 1), ("dynamic", 5), ("fenwick", 4), ("fixed", 3), ("single", 1)]
PIECES = {"odd": [1, 5, 64, 63, 17], "tokens": [40] + [1] * 30, "from the first": [1] * 20}


def in_pieces(inputs, lengths):
    """`(begin, piece)` of consecutive pieces."""
    begin = 0
    for length in lengths:
        yield begin, inputs.tokens(begin, begin + length)
        begin += length


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("lengths", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize(("kind", "capacity"), KINDS)
def test_pieces(draw_inputs, make_plan, read, kind, capacity, lengths, delta, backend):
    inputs = draw_inputs(sum(lengths), capacity, delta=delta, batch=2)
    made_by = {"backend": backend} if kind == "dynamic" else {}
    plan = make_plan(kind, inputs, **made_by)
    whole, ended = read(inputs, plan, return_cache=True, backend=backend)
    cache, outputs = None, []
    for begin, piece in in_pieces(inputs, lengths):
        part = make_plan(kind, piece, cache=cache, **made_by)
        assert torch.equal(part.shift, plan.shift[:, begin : begin + part.shift.shape[1]])
        o, cache = read(piece, part, cache=cache, return_cache=True, backend=backend)
        outputs.append(o)
        assert (cache.tokens == begin + o.shape[1]).all()
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cache.state_by_age(), ended.state_by_age(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("lengths", PIECES.values(), ids=PIECES.keys())
def test_pieces_of_both_steps_at_once(draw_inputs, thresholds, lengths, delta, backend):
    inputs = draw_inputs(sum(lengths), 5, delta=delta, batch=2)
    options = {"capacity": 5, "threshold": thresholds, "backend": backend, "return_cache": True}
    whole, ended = dynamic_linear_attention(**inputs.named(), **options)
    cache, outputs = None, []
    for _, piece in in_pieces(inputs, lengths):
        o, cache = dynamic_linear_attention(**piece.named(), **options, cache=cache)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-12)
    for name in ("open_sum", "score_sum", "count"):
        torch.testing.assert_close(getattr(cache.segment, name), getattr(ended.segment, name), rtol=1e-5, atol=1e-6)
    assert cache.state.shape == ended.state.shape  # constant memory


@pytest.mark.parametrize("prefill", BACKENDS)
@pytest.mark.parametrize("decode", BACKENDS)
def test_backends_may_change_between_pieces(draw_inputs, thresholds, prefill, decode):
    inputs = draw_inputs(120, 5, delta=True)
    options = {"capacity": 5, "threshold": thresholds}
    whole, _ = dynamic_linear_attention(**inputs.named(), **options, backend="reference")
    first, cache = dynamic_linear_attention(
        **inputs.tokens(0, 70).named(), **options, backend=prefill, return_cache=True
    )  # fmt: skip
    second, _ = dynamic_linear_attention(**inputs.tokens(70, 120).named(), **options, backend=decode, cache=cache)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_segment_goes_on(draw_inputs, thresholds, backend):
    """Compares scores, gates and all of the final state; the sums of a segment cut by a piece's end are carried
    over."""
    inputs = draw_inputs(150, 5, batch=2)
    options = {"capacity": 5, "threshold": thresholds, "backend": backend, "gate": "straight_through"}
    whole = segment(inputs.k, inputs.v, **options)
    cache, plans = None, []
    for _, piece in in_pieces(inputs, [1, 1, 60, 64, 24]):
        plan = segment(piece.k, piece.v, **options, cache=cache)
        plans.append(plan)
        _, cache = dynamic_linear_attention(**piece.named(), **options, cache=cache, return_cache=True)
    for name in ("shift", "gate"):
        assert torch.equal(torch.cat([getattr(plan, name) for plan in plans], 1), getattr(whole, name)), name
    torch.testing.assert_close(torch.cat([plan.score for plan in plans], 1), whole.score, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", [1, 80])
def test_physical_slots_may_lie_in_any_order(draw_inputs, make_plan, read, backend, time):
    inputs = draw_inputs(60 + time, 5, delta=True, batch=2)
    past, now = inputs.tokens(0, 60), inputs.tokens(60, 60 + time)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(cache.age.shape, generator=generator).argsort(-1)  # another one for every sequence and head
    index = order[..., None, None].expand(cache.state.shape)
    shuffled = replace(cache, state=cache.state.gather(2, index), age=cache.age.gather(2, order))
    assert not torch.equal(shuffled.state, cache.state)
    assert torch.equal(shuffled.state_by_age(), cache.state_by_age())
    plan = make_plan("dynamic", now, cache=cache)
    assert torch.equal(make_plan("dynamic", now, cache=shuffled).shift, plan.shift)
    expected, ended = read(now, plan, cache=cache, return_cache=True, backend=backend)
    o, shuffled_ended = read(now, plan, cache=shuffled, return_cache=True, backend=backend)
    assert torch.equal(o, expected)
    assert torch.equal(shuffled_ended.state_by_age(), ended.state_by_age())


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_flow_from_piece_to_piece(draw_inputs, make_plan, read, delta, backend):
    """Backward through a cache reaches the piece before: the gradients of one call over everything."""
    inputs = draw_inputs(150, 5, delta=delta)
    do = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = inputs.leaves()
    o, _ = read(whole, make_plan("dynamic", whole), backend=backend)
    expected = torch.autograd.grad(o, list(whole.named().values()), do)
    leaves, cache, total = inputs.leaves(), None, torch.zeros((), dtype=torch.float64)
    for begin, piece in in_pieces(leaves, [70, 1, 79]):
        o, cache = read(
            piece, make_plan("dynamic", piece, cache=cache), cache=cache, return_cache=True, backend=backend
        )
        total = total + (o * do[:, begin : begin + o.shape[1]]).sum()
    for gradient, exact in zip(torch.autograd.grad(total, list(leaves.named().values())), expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_know_the_tokens_of_the_cache(draw_inputs, make_plan, read, error, backend):
    """A boundary in the second piece moves the slots of the first: its gate's gradient is that of one call."""
    inputs = draw_inputs(150, 5, delta=True)
    do = torch.zeros(inputs.v.shape, dtype=torch.float64)
    do[:, 70:] = 1.0
    plan = make_plan("dynamic", inputs, gate="straight_through")
    gate = plan.gate.detach().double().requires_grad_()
    o, _ = read(inputs, replace(plan, gate=gate), backend=backend)
    (whole,) = torch.autograd.grad(o, gate, do)
    past, now = inputs.tokens(0, 70), inputs.tokens(70, 150)
    _, cache = read(past, make_plan("dynamic", past), return_cache=True)
    plan = make_plan("dynamic", now, cache=cache, gate="straight_through")
    gate = plan.gate.detach().double().requires_grad_()
    o, _ = read(now, replace(plan, gate=gate), cache=cache, backend=backend)
    (part,) = torch.autograd.grad(o, gate, do[:, 70:])
    assert error(part, whole[:, 70:]) < 1e-12
