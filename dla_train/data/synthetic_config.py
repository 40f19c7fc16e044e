"""The recipe's `data` section of kind `synthetic`: made-up tasks."""

from dataclasses import dataclass
from typing import Literal

from dla_data.synthetic import ChangePoint, Copy, Mqar
from dla_train.config.limits import LONGEST_WINDOW, MOST_PROCESSES, require_at_most


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """Made-up examples with questions in them; only the answers count in the loss, and validation measures how many are
    correct.

    Attributes:
        task: `mqar`, `change_point` or `copy`, with its own fields.
        vocab_size: how many token ids the task may use. window: tokens per example.
        examples: number of different examples, which are repeated in an order of its own each epoch; null makes a new
            one each time.
        workers: processes that make them ahead; 0 makes them in the training process. The order is the same for any
            number.
    """

    kind: Literal["synthetic"] = "synthetic"
    task: Mqar | ChangePoint | Copy
    vocab_size: int
    window: int
    examples: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "window"):
            if (value := getattr(self, name)) < 2:
                raise ValueError(f"{name} is {value}; it must be at least 2")
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples is {self.examples}; it must be at least 1, or null")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")
        require_at_most("window", self.window, LONGEST_WINDOW)
        require_at_most("workers", self.workers, MOST_PROCESSES)
        try:
            self.task.check(self.vocab_size, self.window)
        except ValueError as error:
            own = str(error).startswith(("vocab_size ", "window "))
            raise ValueError(str(error) if own else f"task.{error}") from error
