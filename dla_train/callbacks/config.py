"""The recipe's `logging`, `watchdog` and `profile` sections."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Where the run is found at Weights & Biases; what is left out, W&B's own variables say (WANDB_ENTITY, ...).

    Attributes:
        project: null is WANDB_PROJECT, or else dla-train. entity: the user or team. group, tags: to find runs by.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written while training. `metrics.csv` always has every step.

    Attributes:
        tensorboard: also write event files for TensorBoard.
        wandb: a section (`{project: NAME}`) that also sends the rows of `metrics.csv` to Weights & Biases; null does
            not. Needs the extra `wandb`.
        console_seconds: seconds between lines where the output is no terminal (a terminal gets a progress bar).
        memory_every: steps between measurements of the boundary rate and the slots in use.
        histograms_every: steps between the distributions over tokens, slots and heads behind these means, in
            `memory.jsonl` and as TensorBoard's histograms. Every validation has its own.
        inspect_every: steps between pages, in `inspections/`, that show what the memories do with the first window of
            that step (as `dla-train inspect` does); null writes none.
    """

    tensorboard: bool = True
    wandb: WandbConfig | None = None
    console_seconds: float = 10.0
    memory_every: int = 1
    histograms_every: int = 100
    inspect_every: int | None = None

    def __post_init__(self) -> None:
        if self.console_seconds < 0:
            raise ValueError(f"console_seconds is {self.console_seconds}; it must be at least 0")
        for name in ("memory_every", "histograms_every"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.inspect_every is not None and self.inspect_every < 1:
            raise ValueError(f"inspect_every is {self.inspect_every}; it must be at least 1, or null for no pages")


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """What ends a run that hangs.

    Attributes:
        minutes: without a micro-batch of training or validation; then every thread's stack is written to
            `logs/hang-rank-0.txt` (one file per process), and the process ends with exit code 75. null: wait for ever.
            A process that is stopped (Ctrl-Z, `scontrol suspend`) for more than twice as long ends when it goes on,
            with exit code 1; set null, or more, where that is meant.
    """

    minutes: float | None = 30.0

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}; it must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are recorded to `profile/`: a trace, the costliest operators and, on CUDA, what the memory held.

    The recorded steps are slower, and the one after them waits until all is written. Training stays the same.

    Attributes:
        start: the first of them, as `metrics.csv` counts (from 1). The first few of a run compile and tune.
        steps: how many; a trace has some 10 MB for each micro-batch of a large model.
    """

    start: int = 10
    steps: int = 3

    def __post_init__(self) -> None:
        for name in ("start", "steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    @property
    def last(self) -> int:
        """The last step that is recorded."""
        return self.start + self.steps - 1
