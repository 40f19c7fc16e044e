"""Train one run of the study with `dla-train fit`, and ask it for every size alone."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.errors import RunError
from dla_train.evaluation.recall import recall
from dla_train.evaluation.trained import load_trained
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
    """
    place = folder / run.name
    command = [sys.executable, "-m", "dla_train", "fit", "--recipe", run.recipe, "--run-dir", str(place)]
    command += ["--resume", "auto", *run.settings, f"training.accelerator={accelerator}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"the study's run {run.name} failed (exit code {done.returncode}): {done.stderr.strip()[-500:]}")
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
