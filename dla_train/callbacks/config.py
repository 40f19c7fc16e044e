"""The recipe's `logging`, `watchdog` and `profile` sections."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Where the run is found at Weights & Biases; W&B's own variables (WANDB_ENTITY, ...) give what is left out.

    Attributes:
        project: null takes WANDB_PROJECT, else dla-train. entity: the user or team. group, tags: to find runs by.
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
        console_seconds: seconds between lines if the output is not a terminal (a terminal gets a progress bar).
        memory_every: steps between measurements of the boundary rate and the number of slots in use.
        histograms_every: steps between records of the distributions (over tokens, slots and heads) behind these means,
            in `memory.jsonl` and as TensorBoard's histograms. Every validation records them, too.
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
    """When to end a run that hangs.

    Attributes:
        minutes: time without a micro-batch of training or validation, after which every thread's stack is written to
            `logs/hang-rank-0.txt` (one file per process), and the process ends with exit code 75; null waits forever. A
            process that is suspended (Ctrl-Z, `scontrol suspend`) for more than twice as long ends with exit code 1
            when it continues; set null, or more, if you suspend runs on purpose.
    """

    minutes: float | None = 30.0

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}; it must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are recorded to `profile/`: a trace, the costliest operators and, on CUDA, a snapshot of the memory.

    The recorded steps are slower, and the step after them waits until all is written. The result of training stays the
    same.

    Attributes:
        start: the first recorded step, counted from 1 as in `metrics.csv`. The first few steps of a run compile and
            tune.
        steps: how many are recorded; a trace takes some 10 MB per micro-batch of a large model.
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
