"""Train one run of the study as `dla-train fit` does, and ask it for every size alone.

In this process: a run takes about as long as it takes to start a process that can train, so one process does many.
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
"""Of each size."""


def measured(run: StudyRun, folder: Path) -> dict[str, Any] | None:
    """What an earlier call found, or None."""
    path = folder / run.name / "study.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def measure(run: StudyRun, folder: Path, accelerator: str) -> dict[str, Any]:
    """Train in `folder/NAME` (going on where an earlier call was stopped), evaluate, write `study.json`, return it.

    Raises:
        RunError: the training failed; says where its log is.
        KeyboardInterrupt: it was told to stop, and has saved what it had.
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
