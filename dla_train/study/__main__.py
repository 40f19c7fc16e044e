"""`python -m dla_train.study`: train every run that is not done yet, then write results, table and picture.

If interrupted, the same command continues where it stopped. The results are rewritten after every run, so that they can
be looked at any time; they hold the measurements and their settings.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from dla_train import atomic_files
from dla_train.errors import RunError, UsageError
from dla_train.study.measure import measured
from dla_train.study.plan import BACKBONES, TASKS, VARIANTS, StudyRun, study_runs
from dla_train.study.table import draw, to_markdown
from dla_train.study.workers import measure_all


def main(arguments: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dla_train.study", description=__doc__)
    option = parser.add_argument
    option(
        "--out", type=Path, default=Path("docs/study"), help="where results, table and picture go (default: docs/study)"
    )
    option("--runs", type=Path, default=Path("runs/study"), help="where the run folders go (default: runs/study)")
    option("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    option("--backbones", nargs="+", default=list(BACKBONES), metavar="NAME", help=f"of {', '.join(BACKBONES)}")
    option("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    option(
        "--states", nargs="+", type=int, metavar="K", help="sizes of a state (default: 8 16 for mamba2, 4 8 for gdn)"
    )
    option("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    option("--steps", type=int, help="of every run; more for a GPU (default: those of the recipes)")
    option("--accelerator", choices=["cpu", "gpu"], default="cpu")
    option("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    option("--minutes", type=float, help="begin no further run after this time")
    options = parser.parse_args(arguments)
    try:
        _study(options)
    except (UsageError, RunError) as error:
        print(f"study: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("study: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _study(options: argparse.Namespace) -> None:
    for name in ("jobs", "seeds"):
        if (value := getattr(options, name)) < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1.")
    runs = list(
        study_runs(options.tasks, options.backbones, options.variants, options.states, options.seeds, options.steps)
    )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        options.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {error.filename}: {error.strerror}. Choose another --out or --runs.") from error
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    left = [run for run in runs if measured(run, options.runs) is None]
    found_ones = measure_all(left, options.runs, accelerator=options.accelerator, jobs=options.jobs, until=until)
    for run, found in found_ones:
        shares = ", ".join(f"{size}: {share:.1%}" for size, share in found["right"].items())
        print(f"{run.name}  {shares}  ({found['seconds']:.0f} s)", flush=True)
        _write(runs, options.runs, options.out)
    results = _write(runs, options.runs, options.out)
    print(f"{len(results)} of {len(runs)} runs done; {options.out}/results.json, table.md, recall.png")


def _write(runs: list[StudyRun], folder: Path, out: Path) -> list[dict[str, Any]]:
    results = [found for run in runs if (found := measured(run, folder)) is not None]
    if results:
        atomic_files.write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
        atomic_files.write_text(out / "table.md", to_markdown(results))
        draw(out / "recall.png", results)
    return results


if __name__ == "__main__":
    sys.exit(main())
