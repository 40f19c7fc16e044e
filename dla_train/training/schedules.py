"""Learning-rate schedules: pure functions of the step, so that there is nothing to save and nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down to `floor` at the last step.

    Attributes:
        warmup: steps until the peak.
        floor: where it ends, as a share of the peak.
    """

    kind: Literal["cosine"] = "cosine"
    warmup: int
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        share = _share_after_warmup(step, steps, self.warmup)
        return _warmup(step, self.warmup) * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Linear warm-up, then a straight line down to `floor` at the last step.

    Attributes:
        warmup: steps until the peak.
        floor: where it ends, as a share of the peak.
    """

    kind: Literal["linear"] = "linear"
    warmup: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        share = _share_after_warmup(step, steps, self.warmup)
        return _warmup(step, self.warmup) * (1 - (1 - self.floor) * share)


@dataclass(frozen=True, kw_only=True)
class WSDSchedule:
    """Warm-up, stable, decay (arXiv 2404.06395): the peak is held, and a straight line ends the run.

    Attributes:
        warmup: steps until the peak.
        decay: steps of the line at the end; a run made longer by more `steps` goes on from its stable part.
        floor: where it ends, as a share of the peak.
    """

    kind: Literal["wsd"] = "wsd"
    warmup: int
    decay: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)
        if self.decay < 0:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 steps")

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        done = max(0, step + 1 - (steps - self.decay))
        share = min(1.0, done / self.decay) if self.decay else 0.0
        return _warmup(step, self.warmup) * (1 - (1 - self.floor) * share)


ScheduleConfig = CosineSchedule | LinearSchedule | WSDSchedule


def _warmup(step: int, warmup: int) -> float:
    # Step 0 already learns a little: a first step at rate 0 would be a batch read for nothing.
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _share_after_warmup(step: int, steps: int, warmup: int) -> float:
    """0 at the last step of the warm-up, 1 at the last step of the run."""
    return min(1.0, max(0, step + 1 - warmup) / max(1, steps - warmup))


def _check(warmup: int, floor: float) -> None:
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must be at least 0 steps")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}; it must lie in [0, 1], a share of the peak rate")
