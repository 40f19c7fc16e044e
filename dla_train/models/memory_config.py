"""How a linear mixer keeps the past: `memory` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dla_train.models.config_checks import check_choice, check_count, check_kind, check_positive, is_number

GateKind = Literal["hard", "straight_through"]


@dataclass(frozen=True, kw_only=True)
class SingleMemory:
    """One state for the whole past: the plain backbone."""

    kind: Literal["single"] = "single"

    def __post_init__(self) -> None:
        check_kind(self)


@dataclass(frozen=True, kw_only=True)
class FixedMemory:
    """A new slot every `block` tokens; the two oldest merge when `capacity` is reached."""

    kind: Literal["fixed"] = "fixed"
    block: int = 512
    capacity: int = 32

    def __post_init__(self) -> None:
        check_kind(self)
        check_count("block", self.block)
        check_count("capacity", self.capacity)


@dataclass(frozen=True, kw_only=True)
class FenwickMemory:
    """The levels of Log-Linear attention (arXiv 2506.04761), `capacity` of them; 15 hold 16,384 tokens."""

    kind: Literal["fenwick"] = "fenwick"
    capacity: int = 15

    def __post_init__(self) -> None:
        check_kind(self)
        check_count("capacity", self.capacity)


@dataclass(frozen=True, kw_only=True)
class DynamicMemory:
    """Dynamic Linear Attention: slots that begin where the content changes (eqs. 13 to 17).

    Attributes:
        capacity: the largest number of slots, the paper's K.
        threshold: tau of eq. 14, in [0, 2]; its initial value if it is learned.
        gate: "straight_through" gives the boundaries a gradient ("soft gating"); "hard" gives them none. The outputs
            are the same.
        gate_width: width of the sigmoid whose derivative the straight-through gate uses.
        learn_threshold: tau becomes a parameter per head; needs `gate="straight_through"`.
        calibrate_rate: in training, the share of tokens that should open a slot. Each of the first `calibrate_steps`
            steps sets tau of every head anew to give this rate, in place of `threshold`. null leaves `threshold` as it
            is, as in the paper; an untrained model then opens a slot at every token (`calibration`).
        calibrate_steps: how many steps calibrate. The features change most during the warm-up of the learning rate.
        steer: keeps that rate in all later steps: each step moves tau this fraction, in (0, 1], of the way to the value
            at which its own scores have the rate. null leaves tau as calibrated, and the rate drifts as the features
            change.
    """

    kind: Literal["dynamic"] = "dynamic"
    capacity: int = 30
    threshold: float = 0.6
    gate: GateKind = "straight_through"
    gate_width: float = 0.1
    learn_threshold: bool = False
    calibrate_rate: float | None = None
    calibrate_steps: int = 1
    steer: float | None = None

    def __post_init__(self) -> None:
        check_kind(self)
        check_count("capacity", self.capacity)
        if not is_number(self.threshold) or not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold is {self.threshold!r}; it must lie in [0, 2], the range of the score")
        check_choice("gate", self.gate, get_args(GateKind))
        check_positive("gate_width", self.gate_width)
        if not isinstance(self.learn_threshold, bool):
            raise ValueError(f"learn_threshold is {self.learn_threshold!r}; it must be true or false")
        if self.learn_threshold and self.gate == "hard":
            raise ValueError(
                "learn_threshold is true with gate 'hard', which gives the threshold no gradient; "
                "use gate 'straight_through' or learn_threshold false"
            )
        rate = self.calibrate_rate
        if rate is not None and (not is_number(rate) or not 0 < rate < 1):
            raise ValueError(f"calibrate_rate is {rate!r}; it must lie between 0 and 1 (0.1 is common), or be null")
        check_count("calibrate_steps", self.calibrate_steps)
        if self.steer is None:
            return
        if not is_number(self.steer) or not 0 < self.steer <= 1:
            raise ValueError(f"steer is {self.steer!r}; it must be above 0 and at most 1 (0.1 is common), or null")
        if rate is None:
            raise ValueError(
                f"steer is {self.steer}, but calibrate_rate is null: give the rate that is to be kept, such as 0.1"
            )
        if self.learn_threshold:
            raise ValueError(
                f"steer is {self.steer} and learn_threshold true, and both would move the threshold; set steer null or "
                "learn_threshold false"
            )


MemoryConfig = SingleMemory | FixedMemory | FenwickMemory | DynamicMemory
MEMORIES: dict[str, type[MemoryConfig]] = {
    "single": SingleMemory,
    "fixed": FixedMemory,
    "fenwick": FenwickMemory,
    "dynamic": DynamicMemory,
}
