"""The numbers of a finished run, from its `metrics.csv`."""

from dataclasses import dataclass
from typing import Any

from dla_train.callbacks.memory_watch import BOUNDARY_RATE, SLOTS_IN_USE
from dla_train.runs.metrics_file import ANSWER_ACCURACY, TRAIN, VALIDATION


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the report says.

    Attributes:
        steps, planned_steps: done, and set in the recipe. tokens: seen in training. seconds: of the whole run, over
            all its starts. tokens_per_second: while training (without validation and saving).
        parameters: of the model.
        validation_loss, validation_perplexity: the last ones, nats per token. bigram_loss: on the same windows, or
            None.
        answer_accuracy: share of the answers of a synthetic task that were right in the last validation, or None.
        boundary_rate, slots_in_use: by layer, over the last validation.
    """

    steps: int
    planned_steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    parameters: int
    validation_loss: float
    validation_perplexity: float
    bigram_loss: float | None
    answer_accuracy: float | None
    boundary_rate: dict[int, float]
    slots_in_use: dict[int, float]


def gather(rows: list[dict[str, Any]], *, planned_steps: int, parameters: int, bigram_loss: float | None) -> Facts:
    """Read the facts off the rows of a run that has been validated at least once."""
    train = [row for row in rows if row["split"] == TRAIN]
    validation = [row for row in rows if row["split"] == VALIDATION][-1]
    tokens_per_step = train[0]["tokens"] / train[0]["step"]
    training_seconds = sum(tokens_per_step / row["tokens_per_second"] for row in train)
    return Facts(
        steps=train[-1]["step"],
        planned_steps=planned_steps,
        tokens=train[-1]["tokens"],
        seconds=max(train[-1]["seconds"], validation["seconds"]),
        tokens_per_second=len(train) * tokens_per_step / training_seconds,
        parameters=parameters,
        validation_loss=validation["loss"],
        validation_perplexity=validation["perplexity"],
        bigram_loss=bigram_loss,
        answer_accuracy=validation.get(ANSWER_ACCURACY),
        boundary_rate=_by_layer(validation, BOUNDARY_RATE),
        slots_in_use=_by_layer(validation, SLOTS_IN_USE),
    )


def _by_layer(row: dict[str, Any], name: str) -> dict[int, float]:
    return {int(key.rpartition(".")[2]): value for key, value in row.items() if key.startswith(f"{name}.")}
