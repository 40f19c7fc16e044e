"""The recipe's `logging` section."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written while training. `metrics.csv` always has every step.

    Attributes:
        tensorboard: also write event files for TensorBoard.
        console_seconds: seconds between lines where the output is no terminal (a terminal gets a progress bar).
        memory_every: steps between measurements of the boundary rate and the slots in use.
    """

    tensorboard: bool = True
    console_seconds: float = 10.0
    memory_every: int = 1

    def __post_init__(self) -> None:
        if self.console_seconds < 0:
            raise ValueError(f"console_seconds is {self.console_seconds}; it must be at least 0")
        if self.memory_every < 1:
            raise ValueError(f"memory_every is {self.memory_every}; it must be at least 1")
