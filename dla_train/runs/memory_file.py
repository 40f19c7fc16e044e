"""`memory.jsonl`: how slots are used, a line for each layer whenever the memories' distributions are taken.

Like `metrics.csv`, a resumed run has the file of one that never stopped: lines after the step that it goes on from are
dropped, and so is a last line that a kill has torn.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.runs.appended_file import AppendedFile


class MemoryFile:
    """Appends lines; made for one start of a run.

    Args:
        path: the file.
        step: the step that training goes on from; later lines are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= step] if step else []
        atomic_files.write_text(path, _text(kept))
        self._file = AppendedFile(path)

    def append(self, step: int, split: str, by_layer: Mapping[int, Mapping[str, float]]) -> None:
        """Write the numbers of all layers at a step, in one piece."""
        lines = [{"step": step, "split": split, "layer": layer, **found} for layer, found in by_layer.items()]
        self._file.append(_text(lines))

    def sync(self) -> None:
        """Bring all lines to disk: before a checkpoint, which must not be newer than they are."""
        self._file.sync()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if there is no file. What a loss of power has left of a line is none."""
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
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
