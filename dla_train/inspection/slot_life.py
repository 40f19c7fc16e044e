"""Derives from a plan's shifts which slots existed, and when."""

from collections.abc import Iterable
from dataclasses import dataclass

from dla_kernels import Plan
from dla_kernels.plan import JOIN


@dataclass(frozen=True)
class Spell:
    """A slot, for as long as it held the same tokens, or was open and grew by one token at each step.

    Attributes:
        first, end: it holds the tokens `first .. end - 1` (an open slot: at the end of the spell).
        since, until: it exists in this form after each of the tokens `since .. until - 1`.
        density: mean score of its tokens.
        is_open: whether tokens still join it.
    """

    first: int
    end: int
    since: int
    until: int
    density: float
    is_open: bool


@dataclass
class _Slot:
    first: int
    end: int
    since: int
    score_sum: float

    def spell(self, until: int, *, is_open: bool) -> Spell:
        return Spell(self.first, self.end, self.since, until, self.score_sum / (self.end - self.first), is_open)


def spells(
    shift: list[int], score: list[float], capacity: int, collapse: bool, ends: Iterable[int] = ()
) -> list[Spell]:
    """All spells of one head over one text, in the order in which they end; slots that exist at the end come last,
    oldest first.

    Args:
        shift, score, capacity, collapse: of the plan, see `dla_kernels.Plan`; the text begins with their first token.
        ends: where documents end that are kept apart; all their slots end there, too.
    """
    stops = frozenset(ends)
    done: list[Spell] = []
    slots: dict[int, _Slot] = {}
    for now, moved in enumerate(shift):
        if now in stops:
            done += _last(slots, now)
            slots = {}
        if slots and (moved == JOIN or capacity == 1):
            slots[0].end, slots[0].score_sum = now + 1, slots[0].score_sum + score[now]
            continue
        older: dict[int, _Slot] = {}
        for age in sorted(slots, reverse=True):
            slot = slots[age]
            grown = age if age > moved else moved + 1 if collapse else age + 1
            grown = min(grown, capacity - 1)
            if age == 0:  # the slot is closed now
                done.append(slot.spell(now, is_open=True))
                slot.since = now
            if grown in older:  # two slots of the same age merge
                other = older[grown]
                done += [part.spell(now, is_open=False) for part in (other, slot) if part.since < now]
                slot = _Slot(other.first, slot.end, now, other.score_sum + slot.score_sum)
            older[grown] = slot
        slots = {**older, 0: _Slot(now, now + 1, now, score[now])}
    return done + _last(slots, len(shift))


def _last(slots: dict[int, _Slot], end: int) -> list[Spell]:
    """The spells of the slots that exist when a document ends, oldest first."""
    return [slots[age].spell(end, is_open=age == 0) for age in sorted(slots, reverse=True)]


def lives_of(plan: Plan, ends: Iterable[int] = ()) -> list[list[Spell]]:
    """`spells` of every head of a plan of one sequence."""
    return [
        spells(shift, score, plan.capacity, plan.collapse, ends)
        for shift, score in zip(plan.shift[0].T.tolist(), plan.score[0].T.tolist(), strict=True)
    ]
