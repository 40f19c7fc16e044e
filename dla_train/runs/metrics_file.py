"""`metrics.csv`: one row per training step and per validation, with floats exact to the last bit.

Apart from the times, a run that was killed and resumed ends up with the file of one that never stopped: rows after the
step that it continues from are dropped, and each row is one write, so that a kill can truncate only the last one, which
is then dropped, too.
"""

import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.runs.appended_file import AppendedFile

_LOGGER = logging.getLogger(__name__)

TRAIN, VALIDATION = "train", "validation"
FIRST_COLUMNS = (
    "step",
    "split",
    "loss",
    "perplexity",
    "lr",
    "grad_norm",
    "skipped",
    "tokens",
    "tokens_per_second",
    "seconds",
    "flops_per_second",
    "mfu",
    "device_memory_gb",
)
"""In this order: finished steps; train or validation; nats per token; their exponential; learning rate and gradient
norm of the step; steps skipped so far because of a gradient that was not finite; training tokens seen so far; speed of
the step; seconds since the run began, without pauses between kill and resume; FLOP/s of the step; their share of the
devices' peak (empty for a device whose peak is not known); the most memory, in 10^9 bytes, that tensors took on the
first process's GPU in the step (empty on the CPU)."""
TIMES = ("tokens_per_second", "seconds", "flops_per_second", "mfu", "device_memory_gb")
"""Columns that differ between any two runs."""
ANSWER_ACCURACY = "answer_accuracy"
"""A further column of runs on synthetic tasks: the share of validation answers that are correct."""


RowKey = tuple[int, str]
"""Step and split of a row, which no other row has; in the order of the rows, as training comes first by name, too."""


class MetricsFile:
    """Appends rows; one object per start of a run.

    Args:
        path: the file.
        columns: further columns after `FIRST_COLUMNS`.
        step: the step that training continues from; later rows are dropped.
    Attributes:
        found: the rows that the file had before any was dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.columns = (*FIRST_COLUMNS, *columns)
        rows = read_rows(path)
        if not rows and step:
            _tell_of_lost_rows(path, step)
        self.found = [key_of(row) for row in rows]
        kept = [row for row in rows if row["step"] <= step] if step else []
        atomic_files.write_text(path, _lines([dict(zip(self.columns, self.columns, strict=True)), *kept], self.columns))
        self._file = AppendedFile(path)

    def append(self, row: dict[str, Any]) -> None:
        """Append one row; columns that it lacks stay empty."""
        self._file.append(_lines([row], self.columns))

    def sync(self) -> None:
        """Bring all rows to disk; called before a checkpoint, which must not be newer than the rows."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _tell_of_lost_rows(path: Path, step: int) -> None:
    """Warn that a run goes on from `step` without the rows of its earlier steps, and keep a file that is none."""
    if path.is_file() and path.stat().st_size:
        aside = path.with_name(f"{path.name}.unreadable")
        os.replace(path, aside)
        _LOGGER.warning("%s has no rows that can be read: it is kept as %s, and a new one begins.", path, aside)
    else:
        _LOGGER.warning("%s is not there, or empty: a new one begins after step %d.", path, step)


def key_of(row: dict[str, Any]) -> RowKey:
    """What tells a row from all others."""
    return row["step"], row["split"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows, with numbers parsed and empty fields left out; empty if there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    # A loss of power may leave blocks of zeros, which csv refuses where they are longer than its fields may be.
    lines = [line for line in whole.split("\n") if "\0" not in line and len(line) <= csv.field_size_limit()]
    rows = []
    for fields in csv.DictReader(lines):
        row = {name: _number(name, value) for name, value in fields.items() if name and value}
        if isinstance(row.get("step"), int) and "split" in row:
            rows.append(row)
    return rows


def _lines(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writerows(
        {name: repr(value) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue()


def _number(name: str, value: str) -> Any:
    if name == "split":
        return value
    try:
        return int(value) if name in ("step", "skipped", "tokens") or name.startswith("tokens.") else float(value)
    except ValueError:
        return value
