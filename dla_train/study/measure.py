"""Trains one run of the study as `dla-train fit` does, and evaluates its recall for each size.

This happens in the calling process, which does many runs: starting a process that can train takes about as long as a
run.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.errors import RunError, UsageError
from dla_train.runs.folder import RunFolder
from dla_train.study.plan import StudyRun

EXAMPLES = 512
"""Examples of each size."""


def measured(run: StudyRun, folder: Path) -> dict[str, Any] | None:
    """The result of an earlier call of `measure`, or None."""
    path = folder / run.name / "study.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def measure(run: StudyRun, folder: Path, accelerator: str) -> dict[str, Any]:
    """Train in `folder/NAME` (continuing where an earlier call was stopped), evaluate, write `study.json`, and return
    its content.

    Raises:
        RunError: the training failed; says where its log is.
        KeyboardInterrupt: the training was told to stop, and has saved a checkpoint.
    """
    from dla_train.evaluation.recall import recall  # imports torch, which the first process of several does not need
    from dla_train.evaluation.trained import load_trained
    from dla_train.training.fit import fit

    place = folder / run.name
    try:
        loaded = load(find(run.recipe), [*run.settings, f"training.accelerator={accelerator}"])
        outcome = fit(loaded, RunFolder(place), "auto")
    except (UsageError, RunError) as error:
        raise RunError(f"the study's run {run.name} failed: {error} Its log is in {place}/logs.") from error
    if outcome.signal_number is not None:
        raise KeyboardInterrupt
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    trained = load_trained(place)
    data = trained.recipe.data
    right = recall(trained.model, data.task, vocab_size=data.vocab_size, window=data.window, examples=EXAMPLES)  # type: ignore[union-attr]
    found = {
        **asdict(run),
        "steps": trained.step,
        "accelerator": accelerator,
        "right": right,
        "parameters": report["parameters"],
        "boundary_rate": report["boundary_rate"],
        "seconds": report["seconds"],
    }
    atomic_files.write_text(place / "study.json", json.dumps(found, indent=2) + "\n")
    return json.loads(json.dumps(found))
