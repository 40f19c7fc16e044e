"""The numbers of a finished run, from its `metrics.csv`."""

import math
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import Any

from dla_train.callbacks.memory_watch import BOUNDARY_RATE, SLOTS_IN_USE
from dla_train.runs.metrics_file import ANSWER_ACCURACY, TRAIN, VALIDATION

LAST = 50
"""The training loss is the mean over so many last steps, because that of a single step depends on its windows."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers of the report.

    Attributes:
        steps, planned_steps: done, and planned by the recipe. tokens: seen in training. seconds: of the whole run, over
            all its starts. tokens_per_second: while training, without validation and saving.
        skipped_steps: those of `steps` that changed no weight (`training.max_nonfinite`, `training.skip_above`).
        device_memory_gb: the most that a step took on a GPU, in 10^9 bytes; None on the CPU.
        parameters: of the model. training_loss: mean over the last `LAST` steps, in nats per token or answer, without
            those whose loss is not finite; None if none is. training_loss_steps: how many it is the mean of.
        validation_loss, validation_perplexity: at the end, in the same unit; None for a run without validation.
            bigram_loss: on the same windows, or None.
        answer_accuracy: share of correct answers of a synthetic task at the end, or None.
        boundary_rate, slots_in_use: by layer, over the last validation, or else in the last training step that recorded
            them.
    """

    steps: int
    planned_steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    skipped_steps: int
    device_memory_gb: float | None
    parameters: int
    training_loss: float | None
    training_loss_steps: int
    validation_loss: float | None
    validation_perplexity: float | None
    bigram_loss: float | None
    answer_accuracy: float | None
    boundary_rate: dict[int, float]
    slots_in_use: dict[int, float]


def gather(rows: list[dict[str, Any]], *, planned_steps: int, parameters: int, bigram_loss: float | None) -> Facts:
    """Gather the facts from the rows of a run that has trained."""
    train = [row for row in rows if row["split"] == TRAIN]
    # A validation of an earlier step, before the recipe switched it off, says nothing about the final model.
    at_end = [row for row in rows if row["split"] == VALIDATION and row["step"] == train[-1]["step"]]
    validation = at_end[-1] if at_end else {}
    looked_at = next((row for row in (validation, *reversed(train)) if _by_layer(row, BOUNDARY_RATE)), {})
    last = [row["loss"] for row in train[-LAST:] if math.isfinite(row["loss"])]
    return Facts(
        steps=train[-1]["step"],
        planned_steps=planned_steps,
        tokens=train[-1]["tokens"],
        seconds=max(row["seconds"] for row in (train[-1], *at_end)),
        tokens_per_second=harmonic_mean(row["tokens_per_second"] for row in train),  # steps are equally long in tokens
        skipped_steps=train[-1].get("skipped", 0),  # absent in files of versions that never skipped a step
        device_memory_gb=max((row["device_memory_gb"] for row in train if "device_memory_gb" in row), default=None),
        parameters=parameters,
        training_loss=fmean(last) if last else None,
        training_loss_steps=len(last),
        validation_loss=validation.get("loss"),
        validation_perplexity=validation.get("perplexity"),
        bigram_loss=bigram_loss,
        answer_accuracy=validation.get(ANSWER_ACCURACY),
        boundary_rate=_by_layer(looked_at, BOUNDARY_RATE),
        slots_in_use=_by_layer(looked_at, SLOTS_IN_USE),
    )


def _by_layer(row: dict[str, Any], name: str) -> dict[int, float]:
    return {int(key.rpartition(".")[2]): value for key, value in row.items() if key.startswith(f"{name}.")}
