"""`dla-train fit`: train a recipe, or go on with a run."""

import argparse
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.missing_recipe import missing_recipe
from dla_train.cli.out_folder import a_folder
from dla_train.errors import UsageError

if TYPE_CHECKING:
    from dla_train.config.load import LoadedRecipe
    from dla_train.runs.folder import RunFolder

_EXAMPLES = """\
settings:
  key=value sets any key that `dla-train show` prints; the value is written as in YAML. Naming another kind
  (model.mixer.memory=fenwick) starts that section anew with the kind's defaults.

resuming:
  never (the default)  start at step 0; refuses a folder that already holds a run with checkpoints
  auto                 go on from the newest sound checkpoint of the run folder; starts at step 0 if there is none,
                       so it suits scripts that are run again until they succeed
  PATH                 go on from this checkpoint (.../checkpoints/step-00000100) or run folder; with a new --run-dir
                       the run branches off there: it saves that step in its own folder first, where auto goes on
                       with it. All but model and optimizer.kind may differ; the log says what does
  auto:PATH            the two as one command, for scripts that are run again: auto, but a run folder without a
                       checkpoint branches off at PATH
  To begin at step 0, with a fresh optimizer and schedule, with the weights of another run: initial_weights=PATH

stopping:
  Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal (SIGHUP) finish the step, save a checkpoint and say how to go on (exit
  code 130, 143, 138, 129).
  A validation is not waited for, but for the last one; the resumed run makes up for it.

examples:
  dla-train fit --recipe tiny
  dla-train fit --recipe tiny training.steps=50 optimizer.lr=1e-3 --run-dir runs/short
  dla-train fit --run-dir runs/short --resume auto
  dla-train fit --recipe my/recipe.yaml model.mixer.memory=fenwick
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "fit",
        help="train a recipe, or go on with a run",
        description=__doc__,
        usage="dla-train fit --recipe NAME_OR_PATH [key=value ...] [--resume WHERE] [--run-dir DIR]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME_OR_PATH",
        help="a shipped recipe's name, or the path of a .yaml file; may be left out where --run-dir holds a run",
    )
    parser.add_argument(
        "--resume", metavar="WHERE", type=_where, default="never", help="never, auto, PATH or auto:PATH; see below"
    )
    parser.add_argument(
        "--run-dir", "--out", dest="run_dir", metavar="DIR", type=a_folder, help="the run folder (default: runs/NAME)"
    )
    parser.set_defaults(run=run)


def _where(text: str) -> str:
    """The type of `--resume`; an empty text, as from an unset shell variable, must not mean the current folder."""
    if not text.removeprefix("auto:"):
        raise argparse.ArgumentTypeError(f"'{text}' names no place; give never, auto, PATH or auto:PATH")
    return text


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Train, print the report, return the exit code."""
    from dla_train.runs.exit_code_file import announce_exit
    from dla_train.runs.folder import RunFolder

    try:
        loaded = _load(options, settings)
        folder = RunFolder(options.run_dir or Path("runs") / loaded.name)
        from dla_train.cli.fit_refusals import refuse_at_once

        refuse_at_once(loaded, folder, options.resume)
        return _fit(loaded, folder, options.resume, _again(options, settings))
    except UsageError as error:
        with suppress(OSError):
            announce_exit(error.exit_code)  # before srun ends the other processes and reports their code
        raise


def _load(options: argparse.Namespace, settings: list[str]) -> "LoadedRecipe":
    from dataclasses import replace

    from dla_train.checkpoints.begun import is_begun
    from dla_train.config.catalog import find
    from dla_train.config.load import load
    from dla_train.runs.folder import RunFolder
    from dla_train.runs.saved_recipe import saved_recipe

    if options.recipe is not None:
        file = find(options.recipe)
        return load(file, settings, begun=is_begun(options.run_dir or Path("runs") / file.name))
    if options.run_dir is None:
        raise missing_recipe("fit", settings)
    folder = RunFolder(options.run_dir)
    if not folder.is_run():
        raise UsageError(f"{options.run_dir} holds no run to take the recipe from: give --recipe NAME_OR_PATH.")
    name = saved_recipe(folder).name  # without the settings: what is wrong with them is not the file's fault
    return replace(load(find(str(folder.recipe)), settings, begun=is_begun(options.run_dir)), name=name)


def _again(options: argparse.Namespace, settings: list[str]) -> list[str]:
    """The arguments of this command, with which further processes of the same run are started."""
    given = {"--recipe": options.recipe, "--run-dir": options.run_dir, "--resume": options.resume}
    flags = ["--debug"] if options.debug else []
    return ["fit", *flags, *(f"{name}={value}" for name, value in given.items() if value is not None), *settings]


def _fit(loaded: "LoadedRecipe", folder: "RunFolder", resume: str, arguments: list[str]) -> int:
    from dla_data.counted import counted
    from dla_train.runs.console import start_console

    start_console()
    from dla_train.training.fit import fit

    outcome = fit(loaded, folder, resume, arguments)
    if not outcome.is_told:
        return 0 if outcome.signal_number is None else 128 + outcome.signal_number
    if outcome.signal_number is None:
        print(f"\n{outcome.report}", end="")
        return 0
    again = f"dla-train fit --run-dir {shlex.quote(str(folder))} --resume auto"
    if outcome.resumable_step is None:
        when = (
            f"after {counted(outcome.step, 'step')}, none of them saved"
            if outcome.step
            else "before the first step was done"
        )
        print(f"stopped {when}; start again with: {again}", file=sys.stderr)
    else:
        print(f"stopped; step {outcome.resumable_step} is saved. Go on with: {again}", file=sys.stderr)
    return 128 + outcome.signal_number
