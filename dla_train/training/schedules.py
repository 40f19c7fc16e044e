"""Learning-rate schedules: pure functions of the step, so that there is nothing to save and nothing to restore.

No step has rate 0, which would waste a batch: the first step of the warm-up already has a share of the peak, and a
falling rate would reach `floor` one step after the last, as in torchtitan, litgpt and transformers.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down towards `floor`.

    Attributes:
        warmup: steps until the peak; 0 begins there.
        floor: what the step after the last would have, as a share of the peak.
    """

    kind: Literal["cosine"] = "cosine"
    warmup: int = 0
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        share = _share_fallen(step, steps, self.warmup)
        return _warmup(step, self.warmup) * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Linear warm-up, then a straight line down towards `floor`.

    Attributes:
        warmup: steps until the peak; 0 begins there.
        floor: what the step after the last would have, as a share of the peak.
    """

    kind: Literal["linear"] = "linear"
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        share = _share_fallen(step, steps, self.warmup)
        return _warmup(step, self.warmup) * (1 - (1 - self.floor) * share)


@dataclass(frozen=True, kw_only=True)
class WSDSchedule:
    """Warm-up, stable, decay (arXiv 2404.06395): the peak is held, and a straight line ends the run.

    Attributes:
        warmup: steps until the peak; 0 begins there.
        decay: steps at the end that are below the peak; a run prolonged by more `steps` continues from its stable part.
        floor: what the step after the last would have, as a share of the peak.
    """

    kind: Literal["wsd"] = "wsd"
    warmup: int = 0
    decay: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.floor)
        if self.decay < 0:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 steps")

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        return _warmup(step, self.warmup) * (1 - (1 - self.floor) * _share_fallen(step, steps, steps - self.decay))


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """Linear warm-up, then the peak for good.

    Attributes:
        warmup: steps until the peak; 0 begins there.
    """

    kind: Literal["constant"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(self.warmup)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate for step `step` (from 0) of `steps`."""
        return _warmup(step, self.warmup)


ScheduleConfig = CosineSchedule | LinearSchedule | WSDSchedule | ConstantSchedule


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _share_fallen(step: int, steps: int, held: int) -> float:
    """The fraction of the way from the peak to the floor: 0 in the first `held` steps, then rising by equal amounts to
    1 at the step after the last."""
    fallen = step + 1 - held
    return fallen / (steps + 1 - held) if fallen > 0 else 0.0


def _check(warmup: int, floor: float = 0.0) -> None:
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must be at least 0 steps")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}; it must lie in [0, 1], a share of the peak rate")
