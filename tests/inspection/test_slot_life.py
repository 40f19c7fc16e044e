"""The drawn slots are those of the plan, told by an account of every single token."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import fenwick_plan, fixed_plan, segment
from dla_train.inspection.slot_life import spells

TIME = 60


def plans():
    torch.manual_seed(3)
    k, v = torch.randn(1, TIME, 2, 4), torch.randn(1, TIME, 2, 4)
    yield "dynamic", segment(k, v, capacity=5, threshold=1.1)
    yield "two", segment(k, v, capacity=2, threshold=1.1)
    yield "never", segment(k, v, capacity=5, threshold=2.0)
    yield "always", segment(k, v, capacity=5, threshold=0.0)
    yield "fixed", fixed_plan(1, TIME, 2, block=7, capacity=3)
    yield "fenwick", fenwick_plan(1, TIME, 2, capacity=6)
    yield "full fenwick", fenwick_plan(1, TIME, 2, capacity=4)


def ages_of_tokens(shift, capacity, collapse):
    """After each token, the age of the slot that every token so far is in."""
    ages, history = [], []
    for t, moved in enumerate(shift):
        if t and moved >= 0:
            ages = [min((moved + 1 if collapse else age + 1) if age <= moved else age, capacity - 1) for age in ages]
        elif t == 0:
            ages = []
        history.append([*ages, 0])
        ages = history[-1]
    return history


@pytest.mark.parametrize(("name", "plan"), list(plans()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_token_is_in_one_slot_at_every_time(name, plan):
    for head in range(2):
        shift, score = plan.shift[0, :, head].tolist(), plan.score[0, :, head].tolist()
        life = spells(shift, score, plan.capacity, plan.collapse)
        for t, ages in enumerate(ages_of_tokens(shift, plan.capacity, plan.collapse)):
            now = sorted((spell for spell in life if spell.since <= t < spell.until), key=lambda spell: spell.first)
            found = [(spell.first, min(spell.end, t + 1)) for spell in now]
            starts = [j for j in range(t + 1) if j == 0 or ages[j] != ages[j - 1]]
            assert found == list(zip(starts, [*starts[1:], t + 1], strict=True)), (name, t)
            assert [spell.is_open for spell in now] == [False] * (len(now) - 1) + [True]
        for spell in life:
            held = score[spell.first : spell.end]
            assert spell.density == pytest.approx(sum(held) / len(held), abs=1e-5)
        assert [spell.end for spell in life[-len(now) :]] == [end for _, end in found]


def test_a_document_takes_its_slots_along():
    """Those of several documents in a row are those of each alone."""
    starts = torch.tensor([0, 1, 24, 60], dtype=torch.int32)
    torch.manual_seed(3)
    k, v = torch.randn(1, TIME, 2, 4), torch.randn(1, TIME, 2, 4)
    for plan in (
        segment(k, v, capacity=5, threshold=1.1, cu_seqlens=starts),
        fixed_plan(1, TIME, 2, block=7, capacity=3, cu_seqlens=starts),
        fenwick_plan(1, TIME, 2, capacity=4, cu_seqlens=starts),
    ):
        shift, score = plan.shift[0, :, 1].tolist(), plan.score[0, :, 1].tolist()
        alone = [
            replace(one, first=one.first + a, end=one.end + a, since=one.since + a, until=one.until + a)
            for a, b in [(0, 1), (1, 24), (24, 60)]
            for one in spells(shift[a:b], score[a:b], plan.capacity, plan.collapse)
        ]
        assert spells(shift, score, plan.capacity, plan.collapse, ends=[1, 24, 60]) == alone
