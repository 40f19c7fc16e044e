"""The recipe's `checkpoint` section."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep. A checkpoint is always written at the end of a run and when a run is told to stop.

    Attributes:
        every: steps between checkpoints; null saves only in those two cases.
        keep_last: how many of the newest stay. With 1, a damaged newest one leaves nothing to fall back on.
        keep_every: checkpoints at multiples of this many steps stay for good; null keeps none for good.
        background: whether training continues while a checkpoint is written from a copy in main memory, which is as
            large as the checkpoint; otherwise training waits. A checkpoint written this way becomes visible a little
            after its step; until then, the one before it is the newest.
    """

    every: int | None = 100
    keep_last: int = 2
    keep_every: int | None = None
    background: bool = True

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}; it must be at least 1")
        for name in ("every", "keep_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or null")
