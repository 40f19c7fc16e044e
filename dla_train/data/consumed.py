"""How much a run has read: determines its next window and the token counts of its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """What was read by the end of a step, over all ranks, in this run and in the runs that it branched off from.

    It cannot be computed from the recipe's sizes: a run may branch off with another batch, window or mixture.

    Attributes:
        step: finished optimizer steps. windows, tokens: how many were trained on by then.
        by_source: the tokens of each source; empty if there is only one.
    """

    step: int = 0
    windows: int = 0
    tokens: int = 0
    by_source: Mapping[str, int] = field(default_factory=dict)
