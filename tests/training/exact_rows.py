"""What a run wrote to `metrics.csv`, to be compared with that of another run."""

import csv
from pathlib import Path

from dla_train.runs.metrics_file import TIMES


def exact_rows(folder: Path) -> list[dict[str, str]]:
    """Every field of every row of a run folder's `metrics.csv` as it is written there, but for times."""
    with (folder / "metrics.csv").open() as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]
