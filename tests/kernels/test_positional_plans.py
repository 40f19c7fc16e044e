"""Fixed blocks and Fenwick levels against masks written from their definitions, token pair by token pair."""

import pytest
import torch

from dla_kernels import fenwick_plan, fixed_plan, single_plan


def fenwick_level(t, j):
    """Log-Linear attention: the binary digits of t cut the tokens before t into blocks, the largest first; the block of
    digit b is level b + 1, the token itself level 0."""
    if j == t:
        return 0
    begin = 0
    for digit in reversed(range(t.bit_length())):
        if t >> digit & 1:
            begin += 1 << digit
            if j < begin:
                return digit + 1
    raise AssertionError("j is not before t")


def fixed_age(t, j, block):
    return t // block - j // block


def dense(inputs, age, capacity):
    """`o_t = sum_j L[t, age(t, j)] exp(G_t - G_j) (q_t . k_j) scale v_j` with the whole T x T matrix."""
    time, heads = inputs.v.shape[1:3]
    ages = torch.tensor([[min(age(t, j), capacity - 1) if j <= t else 0 for j in range(time)] for t in range(time)])
    weight = inputs.slot_weight.transpose(1, 2).gather(-1, ages.expand(1, heads, time, time))
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (inputs.q, inputs.k))
    total = inputs.log_decay.cumsum(1).transpose(1, 2)
    products = torch.einsum("bthk,bjhk->bhtj", q, k) * q.shape[3] ** -0.5
    decay = (total[..., :, None] - total[..., None, :]).exp()
    return torch.einsum("bhtj,bjhv->bthv", (products * decay * weight).tril(), inputs.v)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 15])
def test_fenwick_against_a_dense_mask(draw_inputs, read, capacity, backend):
    """150 tokens: up to `2^(capacity - 1)` and beyond, where the last level keeps everything older."""
    inputs = draw_inputs(150, capacity)
    o, _ = read(inputs, fenwick_plan(1, 150, 4, capacity=capacity), backend=backend)
    torch.testing.assert_close(o, dense(inputs, fenwick_level, capacity), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("block", "capacity"), [(1, 4), (7, 1), (7, 2), (7, 30), (64, 2), (200, 3)])
def test_fixed_against_a_dense_mask(draw_inputs, read, block, capacity, backend):
    inputs = draw_inputs(150, capacity)
    o, _ = read(inputs, fixed_plan(1, 150, 4, block=block, capacity=capacity), backend=backend)
    expected = dense(inputs, lambda t, j: fixed_age(t, j, block), capacity)
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)


def test_fenwick_slots_in_use():
    """Levels up to that of the highest binary digit exist, empty ones counted."""
    for capacity in (1, 2, 4, 15):
        in_use = fenwick_plan(1, 70, 1, capacity=capacity).slots_in_use().flatten().tolist()
        assert in_use == [min(t.bit_length() + 1, capacity) for t in range(70)]


def test_fenwick_slots_in_use_with_documents(documents_of):
    cu_seqlens = torch.tensor([0, 40, 41, 60])
    in_use = fenwick_plan(1, 60, 2, capacity=15, cu_seqlens=cu_seqlens).slots_in_use(cu_seqlens)
    for begin, end in documents_of(cu_seqlens):
        expected = [min(t.bit_length() + 1, 15) for t in range(end - begin)]
        assert in_use[0, begin:end, 1].tolist() == expected


def test_fixed_slots_in_use():
    in_use = fixed_plan(1, 70, 1, block=9, capacity=5).slots_in_use().flatten().tolist()
    assert in_use == [min(t // 9 + 1, 5) for t in range(70)]


def test_single_plan_joins_everything():
    plan = single_plan(2, 9, 3)
    assert plan.shift.shape == (2, 9, 3)
    assert (plan.shift == -1).all()
    assert plan.capacity == 1
    assert (plan.slots_in_use() == 1).all()


MAKERS = [
    pytest.param(lambda *sizes, **options: fixed_plan(*sizes, block=5, capacity=3, **options), id="fixed"),
    pytest.param(lambda *sizes, **options: fenwick_plan(*sizes, capacity=4, **options), id="fenwick"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_shift_is_what_plan_says_it_may_be(make):
    """Readers take the same results from others, but decoding relies on M to mean that a slot is free."""
    plan = make(1, 60, 1)
    shift, slots = plan.shift.flatten(), plan.capacity
    before = torch.cat((torch.zeros(1, dtype=torch.int64), plan.slots_in_use().flatten()[:-1]))
    assert set(shift.tolist()) <= {-1, *range(slots - 1), slots}
    assert (before[shift == slots] < slots).all()
    if not plan.collapse:
        assert (before[(shift >= 0) & (shift < slots)] == slots).all(), "slots merge only where there is no room"


@pytest.mark.parametrize("make", MAKERS)
def test_start_continues_the_plan(make):
    whole = make(1, 60, 2).shift
    for start in (0, 1, 5, 17, 32):
        assert torch.equal(make(1, 60 - start, 2, start=start).shift, whole[:, start:])
    rows = make(2, 20, 2, start=torch.tensor([3, 40])).shift
    assert torch.equal(rows, torch.cat((whole[:, 3:23], whole[:, 40:60])))


@pytest.mark.parametrize("make", MAKERS)
def test_documents_begin_anew(make, documents_of):
    cu_seqlens = torch.tensor([0, 1, 33, 60], dtype=torch.int32)
    whole = make(1, 60, 2).shift
    packed = make(1, 60, 2, cu_seqlens=cu_seqlens).shift
    expected = [whole[:, : end - begin] for begin, end in documents_of(cu_seqlens)]
    assert torch.equal(packed, torch.cat(expected, 1))


@pytest.mark.parametrize("make", MAKERS)
def test_documents_may_have_a_start_each(make, documents_of):
    cu_seqlens, start = torch.tensor([0, 1, 33, 60]), torch.tensor([7, 0, 25])
    whole = make(1, 60, 2).shift
    packed = make(1, 60, 2, cu_seqlens=cu_seqlens, start=start).shift
    parts = zip(documents_of(cu_seqlens), start.tolist(), strict=True)
    expected = [whole[:, first : first + end - begin] for (begin, end), first in parts]
    assert torch.equal(packed, torch.cat(expected, 1))


@pytest.mark.parametrize("make", MAKERS)
def test_every_row_and_head_alike_and_without_scores(make):
    plan = make(3, 40, 2)
    assert torch.equal(plan.shift, plan.shift[:1, :, :1].expand(3, 40, 2))
    assert plan.shift.dtype == torch.int32
    assert not plan.score.any()
    assert plan.gate is None
    assert plan.final is None
