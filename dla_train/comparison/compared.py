"""One of the runs that are compared, from the files in its folder."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch

from dla_train.callbacks.memory_watch import BOUNDARY_RATE, SLOTS_IN_USE
from dla_train.config.catalog import find
from dla_train.config.typed import plain
from dla_train.config.yaml_tree import parse_tree
from dla_train.data.synthetic_config import SyntheticData
from dla_train.errors import UsageError
from dla_train.models import LanguageModel
from dla_train.report.facts import LAST
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import ANSWER_ACCURACY, TRAIN, VALIDATION, read_rows
from dla_train.runs.saved_recipe import recipe_in

Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run, finished or under way.

    Attributes:
        name: its folder, as the user wrote it. recipe: its values by dotted key. parameters: of the model.
        unread: why this version cannot read the recipe, or None. If it cannot, the recipe's values are those written
            there, none if not even they can be read, and what follows from a recipe is None if it does not say so.
        unit: what a loss is the mean over, `token` or `answer`.
        step, planned_steps: done, and planned. tokens: seen in training.
        training: (tokens, loss) of every step. validation: likewise of every validation.
        answers_right: share of correct answers in the last validation of a synthetic task.
        tokens_per_second: median over all steps. device_memory_gb: the most that a step took; None on the CPU.
        boundary_rate, slots_in_use: mean over the layers, where last recorded; None without such memories.
        left_out: rows of the metrics without tokens or loss, or with something else than numbers there.
    """

    name: str
    recipe: dict[str, Any]
    parameters: int | None
    unread: str | None
    unit: str
    step: int
    planned_steps: int | None
    tokens: int
    training: Points
    validation: Points
    answers_right: float | None
    tokens_per_second: float | None
    device_memory_gb: float | None
    boundary_rate: float | None
    slots_in_use: float | None
    left_out: int

    @property
    def training_loss(self) -> float | None:
        """Mean over the last steps whose loss is finite."""
        last = [loss for _, loss in self.training[-LAST:] if math.isfinite(loss)]
        return fmean(last) if last else None


def read_run(folder: RunFolder) -> Compared:
    """Read a run's recipe and metrics.

    Raises:
        UsageError: the folder holds no run.
    """
    if not folder.is_run():
        what = "an exported model, which has no history" if folder.is_export() else "no run"
        inside = " Those inside it: " + shlex.quote(str(folder)) + "/*." if _has_runs(folder) else ""
        raise UsageError(f"{folder} holds {what}. Give run folders, such as runs/tiny.{inside}")
    parameters, unread = None, None
    try:
        recipe = recipe_in(folder).recipe
    except UsageError as error:
        unread = str(error)
        values = _written(folder)
    else:
        values = flat(plain(recipe))
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in LanguageModel(recipe.model).parameters())
    planned_steps = values.get("training.steps")
    rows = read_rows(folder.metrics)
    whole = [row for row in rows if _is_number(row.get("tokens")) and _is_number(row.get("loss"))]
    train = [row for row in whole if row["split"] == TRAIN]
    validations = [row for row in whole if row["split"] == VALIDATION]
    return Compared(
        name=str(folder),
        recipe=values,
        parameters=parameters,
        unread=unread,
        unit="answer" if values.get("data.kind") == SyntheticData.kind or _has_answers(rows) else "token",
        step=max((row["step"] for row in rows if row["split"] == TRAIN), default=0),
        planned_steps=planned_steps if type(planned_steps) is int else None,  # `true` is an int, too
        tokens=train[-1]["tokens"] if train else 0,
        training=[(row["tokens"], row["loss"]) for row in train],
        validation=[(row["tokens"], row["loss"]) for row in validations],
        answers_right=next(iter(_numbers(validations[-1:], ANSWER_ACCURACY)), None),
        tokens_per_second=median(speeds) if (speeds := _numbers(train, "tokens_per_second")) else None,
        device_memory_gb=max(_numbers(train, "device_memory_gb"), default=None),
        boundary_rate=_mean_of_layers(rows, BOUNDARY_RATE),
        slots_in_use=_mean_of_layers(rows, SLOTS_IN_USE),
        left_out=len(rows) - len(whole),
    )


def _written(folder: RunFolder) -> dict[str, Any]:
    """The values in the file of a recipe that is none for this version; empty if they cannot be read."""
    try:
        file = find(str(folder.recipe))
        values = parse_tree(file.text, file.shown_as).values
    except UsageError:
        return {}
    return flat(values) if isinstance(values, dict) else {}


def _has_answers(rows: list[dict[str, Any]]) -> bool:
    return any(ANSWER_ACCURACY in row for row in rows)


def _has_runs(folder: RunFolder) -> bool:
    return folder.path.is_dir() and any(RunFolder(path).is_run() for path in folder.path.iterdir())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of values by dotted key."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _is_number(value: Any) -> bool:
    """Older versions did not write every column, and what is damaged may be text."""
    return isinstance(value, int | float)


def _numbers(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if _is_number(row.get(name))]


def _mean_of_layers(rows: list[dict[str, Any]], name: str) -> float | None:
    for row in reversed(rows):
        if layers := [value for key, value in row.items() if key.startswith(f"{name}.") and _is_number(value)]:
            return fmean(layers)
    return None
