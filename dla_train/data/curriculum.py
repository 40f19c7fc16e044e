"""Shorter windows at first: the same tokens in the same order, cut into shorter pieces.

A step keeps its number of tokens: if windows are a quarter as long, there are four times as many. They are the step's
full windows cut up, so the order of the text, the positions of streams and the content of a checkpoint are those of a
run without a curriculum.
"""

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Phases before the windows have their full length.

    Attributes:
        windows: length of the windows in each phase, in tokens; `data.window` must be a multiple of each.
        steps: how many steps each phase takes. After the last one, windows are whole; validation always has whole ones.
    """

    windows: tuple[int, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.windows or len(self.windows) != len(self.steps):
            raise ValueError(
                f"windows has {len(self.windows)} lengths and steps {len(self.steps)} numbers; there must be one of "
                "each for every phase"
            )
        for name in ("windows", "steps"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {list(getattr(self, name))}; each must be at least 1")

    def check(self, window: int) -> None:
        """Raise ValueError unless the full `window` is a multiple of each phase's length."""
        for length in self.windows:
            if window % length:
                raise ValueError(
                    f"curriculum.windows has {length}, of which window {window} is not a multiple; "
                    "whole windows are cut into pieces of that length"
                )

    def window_at(self, step: int) -> int | None:
        """Length of the windows of optimizer step `step` (from 0); None if they have their full length."""
        ends = accumulate(self.steps)
        return next((length for length, end in zip(self.windows, ends, strict=True) if step < end), None)
