"""Plans replayed with explicit lists of segments, and the whole algorithm written a second time with lists."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from dla_kernels import Cache, Plan, SegmentState, segment

BACKENDS = ["reference", "torch"]


def replay(shift, capacity):
    """The segments after each token, each a list of token numbers, oldest segment first; checks every shift."""
    segments, history = [], []
    for t, a in enumerate(shift):
        if a == -1 and (segments or capacity == 1):
            if not segments:
                segments.append([])
            segments[-1].append(t)
        elif a == capacity:
            assert len(segments) < capacity, "a token claims room that is not there"
            segments.append([t])
        else:
            assert 0 <= a <= capacity - 2, f"shift {a} does not name a pair"
            assert len(segments) == capacity, "a merge although there is room"
            younger = len(segments) - 1 - a
            segments[younger - 1 : younger + 1] = [segments[younger - 1] + segments[younger]]
            segments.append([t])
        history.append([list(s) for s in segments])
    return history


def rows(plan: Plan):
    """(batch, head, shifts) of every row."""
    for b in range(plan.shift.shape[0]):
        for h in range(plan.shift.shape[2]):
            yield b, h, plan.shift[b, :, h].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("capacity", [1, 2, 3, 15])
def test_segments_hold_every_token_once_in_order(draw_inputs, make_plan, capacity, backend):
    time = 150
    plan = make_plan("dynamic", draw_inputs(time, capacity, batch=2), backend=backend)
    in_use = plan.slots_in_use()
    for b, h, shift in rows(plan):
        history = replay(shift, capacity)
        for t, segments in enumerate(history):
            assert [j for s in segments for j in s] == list(range(t + 1))
            assert len(segments) <= capacity
            assert len(segments) == in_use[b, t, h]
        counts = [len(s) for s in reversed(history[-1])]
        sums = [sum(plan.score[b, j, h].item() for j in s) for s in reversed(history[-1])]
        assert plan.final.count[b, h].tolist() == counts + [0] * (capacity - len(counts))
        assert plan.final.score_sum[b, h, : len(sums)].tolist() == pytest.approx(sums, rel=1e-5, abs=1e-5)
        assert not plan.final.score_sum[b, h, len(sums) :].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_open_sum_is_that_of_the_last_segment(draw_inputs, make_plan, backend):
    inputs = draw_inputs(150, 3)
    plan = make_plan("dynamic", inputs, backend=backend)
    keys = inputs.k.repeat_interleave(2, 2)
    for b, h, shift in rows(plan):
        members = replay(shift, 3)[-1][-1]
        expected = torch.einsum("tk,tv->kv", keys[b, members, h], inputs.v[b, members, h])
        torch.testing.assert_close(plan.final.open_sum[b, h].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_ages_are_what_the_reader_weighs(draw_inputs, make_plan, read, kind):
    """With `q . k = 1` and values one-hot in time, `o_t` shows the weight, and so the age, of every token's slot."""
    time, capacity = 80, 5
    inputs = draw_inputs(time, capacity, decay=False)
    plan = make_plan(kind, inputs)
    inputs.q.fill_(1.0)
    inputs.k.fill_(0.2)  # q . k = 1
    inputs.slot_weight[:] = torch.arange(capacity) + 10.0
    identity = torch.eye(time, dtype=torch.float64)[None, :, None].expand(1, time, 4, time)
    o, _ = read(replace(inputs, v=identity), plan, scale=1.0)
    for b, h, shift in rows(plan):
        for t, segments in enumerate(replay(shift, capacity)):
            expected = torch.zeros(time, dtype=torch.float64)
            for age, members in enumerate(reversed(segments)):
                expected[members] = age + 10.0
            torch.testing.assert_close(o[b, t, h], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_tokens(draw_inputs, backend):
    """Score 0, opens a slot although the score says join, no boundary decision; in every document."""
    inputs = draw_inputs(20, 4)
    cu_seqlens = torch.tensor([0, 1, 8, 20])
    plan = segment(inputs.k, inputs.v, 4, 2.0, cu_seqlens, backend, gate="straight_through")
    firsts = cu_seqlens[:-1]
    assert (plan.score[0, firsts] == 0).all()
    assert (plan.shift[0, firsts] == 4).all()
    assert (plan.gate[0, firsts] == 0).all()
    assert plan.boundary[0, firsts].all()
    assert (plan.slots_in_use(cu_seqlens)[0, firsts] == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_in_use_with_documents(draw_inputs, make_plan, documents_of, backend):
    inputs, cu_seqlens = draw_inputs(120, 6), torch.tensor([0, 3, 70, 120])
    plan = make_plan("dynamic", inputs, cu_seqlens=cu_seqlens, backend=backend)
    in_use = plan.slots_in_use(cu_seqlens)
    for begin, end in documents_of(cu_seqlens):
        for b, h, shift in rows(plan):
            expected = [len(segments) for segments in replay(shift[begin:end], 6)]
            assert in_use[b, begin:end, h].tolist() == expected


def sparsest_by_hand(score_sum, count):
    """Age of the younger member of the pair of lowest density, in exact arithmetic; the oldest of equals."""
    densities = [Fraction(score_sum[a] + score_sum[a + 1], count[a] + count[a + 1]) for a in range(len(count) - 1)]
    return max(a for a, density in enumerate(densities) if density == min(densities))


def merge_of(score_sum, count, backend):
    """The plan of one boundary token after slots with the given sums and counts, by age."""
    capacity = len(count)
    state = SegmentState(
        open_sum=torch.ones(1, 1, 1, 1),
        score_sum=torch.tensor(score_sum, dtype=torch.float32)[None, None],
        count=torch.tensor(count, dtype=torch.int32)[None, None],
    )
    past = Cache.in_age_order(torch.zeros(1, 1, capacity, 1, 1), torch.tensor([sum(count)]), state)
    token = torch.ones(1, 1, 1, 1)
    return segment(token, -token, capacity, 1.0, backend=backend, cache=past)  # score 2: a boundary


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("capacity", [2, 3, 7])
def test_merge_choice_against_brute_force(capacity, backend):
    """Small whole numbers, so that many pairs tie exactly."""
    generator = torch.Generator().manual_seed(capacity)
    for _ in range(60):
        score_sum = torch.randint(0, 4, (capacity,), generator=generator).tolist()
        count = torch.randint(1, 4, (capacity,), generator=generator).tolist()
        plan = merge_of(score_sum, count, backend)
        a = sparsest_by_hand(score_sum, count)
        assert plan.shift.item() == a
        merged = [*score_sum[:a], score_sum[a] + score_sum[a + 1], *score_sum[a + 2 :]]
        tokens = [*count[:a], count[a] + count[a + 1], *count[a + 2 :]]
        assert plan.final.score_sum.flatten().tolist() == [2.0, *merged]  # the boundary's score is its new slot's
        assert plan.final.count.flatten().tolist() == [1, *tokens]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("score_sum", "count", "younger"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], 2),  # all alike
        ([5, 1, 1, 5, 1, 1, 5], [1] * 7, 4),  # two alike in the middle
        ([0, 0, 9, 9, 0, 0], [1] * 6, 4),  # the open slot's pair is as sparse as the oldest
        ([0, 0, 9, 9, 9, 9], [1] * 6, 0),  # the open slot may merge, too
        ([2, 4, 1, 1], [2, 4, 1, 1], 2),  # 6/6 = 5/5 = 2/2: density, not sum
        ([9, 9, 9, 0, 90], [9, 9, 9, 90, 9], 2),  # 9/99 is below 18/18
    ],
)
def test_ties_go_to_the_oldest_pair(score_sum, count, younger, backend):
    assert merge_of(score_sum, count, backend).shift.item() == younger


@pytest.mark.parametrize("backend", BACKENDS)
def test_room_left_in_a_cache_is_used_before_merging(backend):
    assert merge_of([1, 1, 1, 0], [1, 1, 1, 0], backend).shift.item() == 4


def segment_by_lists(keys, values, tau, capacity):
    """Eqs. 13 to 17 in float64 with lists, up to the first decision that rounding could turn: (shifts, scores)."""
    slots, shifts, scores = [], [], []  # a slot: [sum of states, sum of scores, tokens]
    for key, value in zip(keys, values, strict=True):
        own = torch.outer(key, value)
        if not slots:
            slots.append([own, 0.0, 1])
            shifts.append(capacity if capacity > 1 else -1)
            scores.append(0.0)
            continue
        score = (own / own.norm() - slots[-1][0] / slots[-1][0].norm()).norm().item()
        if abs(score - tau) < 1e-4:
            break
        if score < tau or capacity == 1:
            slots[-1] = [slots[-1][0] + own, slots[-1][1] + score, slots[-1][2] + 1]
            shifts.append(-1)
        elif len(slots) < capacity:
            slots.append([own, score, 1])
            shifts.append(capacity)
        else:
            densities = [(x[1] + y[1]) / (x[2] + y[2]) for x, y in pairwise(slots)]
            lowest = min(range(len(densities)), key=densities.__getitem__)
            if sum(d - densities[lowest] < 1e-5 for d in densities) > 1:
                break
            merged = [x + y for x, y in zip(slots[lowest], slots[lowest + 1], strict=True)]
            slots[lowest : lowest + 2] = [merged]
            slots.append([own, score, 1])
            shifts.append(capacity - 2 - lowest)
        scores.append(score)
    return shifts, scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("capacity", [1, 2, 5, 30])
def test_whole_plans_against_lists(draw_inputs, make_plan, thresholds, capacity, backend):
    time = 140
    inputs = draw_inputs(time, capacity, batch=2, seed=capacity)
    plan = make_plan("dynamic", inputs, backend=backend)
    compared, merges = 0, 0
    for b, h, shift in rows(plan):
        tau = thresholds[h].item()
        shifts, scores = segment_by_lists(inputs.k[b, :, h // 2], inputs.v[b, :, h], tau, capacity)
        assert shift[: len(shifts)] == shifts
        torch.testing.assert_close(plan.score[b, : len(scores), h], torch.tensor(scores), rtol=0, atol=1e-5)
        compared += len(shifts)
        merges += sum(0 <= a < capacity for a in shifts)
    assert compared > 0.8 * 2 * 4 * time
    assert merges > 20 or capacity == 1
