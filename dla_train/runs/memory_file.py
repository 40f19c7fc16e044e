"""`memory.jsonl`: how slots are used, one line per layer each time the memories' distributions are recorded.

As with `metrics.csv`, a resumed run ends up with the file of a run that never stopped: lines after the step that it
continues from are dropped, and so is a last line that a kill has truncated.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.runs.appended_file import AppendedFile
from dla_train.runs.metrics_file import RowKey, key_of


class MemoryFile:
    """Appends lines; one object per start of a run.

    Args:
        path: the file.
        last: the row of `metrics.csv` that the run goes on after; lines of later ones are dropped.
    """

    def __init__(self, path: Path, last: RowKey) -> None:
        kept = [line for line in read_lines(path) if key_of(line) <= last] if last[0] else []
        atomic_files.write_text(path, _text(kept))
        self._file = AppendedFile(path)

    def append(self, step: int, split: str, by_layer: Mapping[int, Mapping[str, float]]) -> None:
        """Append the numbers of all layers at a step, in one write."""
        lines = [{"step": step, "split": split, "layer": layer, **found} for layer, found in by_layer.items()]
        self._file.append(_text(lines))

    def sync(self) -> None:
        """Bring all lines to disk; called before a checkpoint, which must not be newer than the lines."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; empty if there is no file. A line damaged by a loss of power is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = (_parsed(line) for line in text[: text.rfind("\n") + 1].split("\n"))
    return [line for line in lines if line is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_line = isinstance(found, dict) and isinstance(found.get("step"), int) and isinstance(found.get("split"), str)
    return found if is_line else None


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
