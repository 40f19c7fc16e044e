"""How much a run has read: where its next window is, and what its metrics say of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """What was read by the end of a step, over all ranks, in this run and those that it branched off from.

    No product of sizes gives it: a run may branch off with another batch, window or mixture.

    Attributes:
        step: finished optimizer steps. windows, tokens: trained on by then.
        by_source: the tokens of each source; empty where there is only one.
    """

    step: int = 0
    windows: int = 0
    tokens: int = 0
    by_source: Mapping[str, int] = field(default_factory=dict)
