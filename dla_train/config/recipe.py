"""The whole recipe: one dataclass; each of its sections is defined in the package that reads it."""

from dataclasses import dataclass, field

from dla_train.callbacks.config import LoggingConfig, ProfileConfig, WatchdogConfig
from dla_train.checkpoints.config import CheckpointConfig
from dla_train.data.config import DataConfig
from dla_train.data.prepared_config import PreparedData
from dla_train.data.streaming_config import StreamingData
from dla_train.data.synthetic_config import SyntheticData
from dla_train.distributed.config import SingleStrategy, StrategyConfig
from dla_train.distributed.possible import require_possible, require_shareable
from dla_train.models.config import ModelConfig
from dla_train.report.config import ReportConfig
from dla_train.training.config import OptimizerConfig, TrainingConfig
from dla_train.training.schedules import ScheduleConfig, WSDSchedule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment.

    Attributes:
        description: one line for `dla-train recipes`.
        seed: of the initial weights, of the order of the windows and of everything else that is random.
        model, data, optimizer, schedule, training, strategy, checkpoint, logging, watchdog, profile, report:
            sections.
        initial_weights: a run folder, a checkpoint in one, or an exported model, whose weights the run begins with at
            step 0, with a fresh optimizer; null draws them at random. A memory that those weights do not fit begins as
            a single state (all slots weigh 1).
    """

    description: str = ""
    seed: int = 0
    model: ModelConfig
    initial_weights: str | None = None
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    strategy: StrategyConfig = field(default_factory=SingleStrategy)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    profile: ProfileConfig | None = None
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**63")
        if self.model.vocab_size < self.data.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, but the tokenizer of data.vocab_size makes ids up to "
                f"{self.data.vocab_size - 1}; set both to one number"
            )
        if isinstance(self.data, StreamingData) and self.training.validation_windows is None:
            raise ValueError(
                "training.validation_windows is null, but streamed text has no end to read up to; set how many to "
                "read, or 0 for no validation"
            )
        if isinstance(self.data, StreamingData) and self.data.held_out == 0 and self.training.validates:
            raise ValueError(
                "data.held_out is 0, which keeps no text for validation; hold out a share of the documents, or set "
                "training.validation_windows=0 and training.validate_every=null to train without validation"
            )
        if isinstance(self.data, SyntheticData) and self.report.prompt is not None:
            raise ValueError("report.prompt is given, but a synthetic task has no words to go on with; leave it null")
        slots = max((getattr(memory, "capacity", 1) for memory in self.model.memories), default=1)
        if self.logging.inspect_every is not None and slots == 1:
            raise ValueError(
                "logging.inspect_every is given, but this model has one state (memory single, or capacity 1) or "
                "softmax attention, which divides no text; leave it null"
            )
        if self.logging.inspect_every is not None and self.strategy.kind not in ("single", "ddp"):
            raise ValueError(
                f"logging.inspect_every is given, but strategy {self.strategy.kind} leaves no process with a whole "
                "model to look at; leave it null, and use dla-train inspect on a checkpoint"
            )
        if self.profile is not None and self.profile.start > self.training.steps:
            raise ValueError(
                f"profile.start is {self.profile.start}, but training.steps is only {self.training.steps}; take an "
                "earlier step, or leave profile null"
            )
        require_possible(self.strategy, self.model, self.optimizer.kind, self.training.precision)
        curriculum = self.data.curriculum if isinstance(self.data, PreparedData | StreamingData) else None
        windows = {
            "data.window": [self.data.window],
            "data.curriculum.windows": curriculum.windows if curriculum else (),
        }
        require_shareable(self.strategy.context_parallel, self.model, windows)
        if self.schedule.warmup >= self.training.steps:
            raise ValueError(
                f"schedule.warmup is {self.schedule.warmup}, but training.steps is only {self.training.steps}; "
                "the warm-up must end before the run does"
            )

    def require_new(self) -> None:
        """Refuse what no new run may begin with, but what must stay readable: runs of earlier versions began with it.

        Raises:
            ValueError: names the keys.
        """
        if isinstance(self.schedule, WSDSchedule):
            most = self.training.steps - self.schedule.warmup
            if self.schedule.decay > most:
                raise ValueError(
                    f"schedule.decay is {self.schedule.decay}, but training.steps {self.training.steps} leave only "
                    f"{most} behind the warm-up; the decay must begin behind it, or the peak rate is never reached"
                )
