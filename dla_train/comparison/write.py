"""The comparison as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dla_train import atomic_files
from dla_train.comparison.compared import Compared
from dla_train.comparison.picture import draw_comparison
from dla_train.errors import UsageError
from dla_train.report.finite import finite


def write_comparison(folder: Path, runs: Sequence[Compared], text: str) -> None:
    """Write `comparison.md` (which is `text`), `comparison.json` and `losses.png` to `folder`, which is made.

    Raises:
        UsageError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_comparison(folder / "losses.png", runs)
        data = [finite({**asdict(run), "training_loss": run.training_loss}) for run in runs]
        atomic_files.write_text(
            folder / "comparison.json", json.dumps(data, indent=1, allow_nan=False, default=str) + "\n"
        )
        atomic_files.write_text(folder / "comparison.md", f"{text}\n![loss curves](losses.png)\n")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}. Give another folder with --out.") from error
