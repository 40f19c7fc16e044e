"""`dla-train preflight`: whether a recipe will train on this machine, before a long run depends on it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from dla_train.cli.missing_recipe import missing_recipe
from dla_train.cli.out_folder import a_folder
from dla_train.errors import UsageError

_LEAST_STEPS = 3  # of which the last is trained again from the checkpoint of the one before

_EXAMPLES = """\
what it does, in a few minutes:
  run         trains some steps of the recipe, on its data and with its strategy, with a validation and a checkpoint
  stop        stops that run with SIGUSR1, as a cluster does before the time limit
  going on    trains the last steps again, from the checkpoint and in new processes: they must be the same
  kernels     compares the op and the layers around it with exact results: decisions, outputs, states, all gradients,
              at the recipe's sizes and in its type, on every GPU; a second call must give the same bits
  and says how fast it is, how much memory a device takes, and whether there is room for the checkpoints.
The kernels that it compiles are there when the recipe is trained. Nothing is left behind if all is well.

on several nodes: start one process per GPU, as for a run
  srun --ntasks-per-node 8 dla-train preflight --recipe gdn-dla-1.3b strategy=fsdp

examples:
  dla-train preflight --recipe tiny
  dla-train preflight --recipe mamba2-dla-780m training.accelerator=gpu data.path=tokens
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "preflight",
        help="whether a recipe will train here: kernels, memory, speed, resume",
        description=__doc__,
        usage="dla-train preflight --recipe NAME_OR_PATH [key=value ...] [--steps N] [--run-dir DIR]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="NAME_OR_PATH", help="a shipped recipe's name, or the path of a .yaml file")
    parser.add_argument("--steps", metavar="N", type=int, default=8, help="how many steps to train (8)")
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=a_folder,
        help="for the two short runs, on the disk of the later one (default: runs/NAME-preflight)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print what was found; 1 if anything is wrong."""
    if options.recipe is None:
        raise missing_recipe("preflight", settings)
    if options.steps < _LEAST_STEPS:
        raise UsageError(
            f"--steps is {options.steps}; it must be at least {_LEAST_STEPS}, of which the last is repeated."
        )
    from dla_train.config.catalog import find
    from dla_train.config.load import load

    loaded = load(find(options.recipe), settings)
    folder = options.run_dir or Path("runs") / f"{loaded.name}-preflight"
    from dla_train.preflight.check import render
    from dla_train.preflight.preflight import preflight
    from dla_train.runs.console import start_console

    start_console()
    checks = preflight(loaded, [f"--recipe={options.recipe}", *settings], folder, options.steps)
    if not checks:  # this is not the first of several processes
        return 0
    print(render(loaded.name, checks), end="", flush=True)
    if all(check.is_right is not False for check in checks):
        return 0
    print(f"The two runs are kept in {folder}; remove it when you have seen their logs.", file=sys.stderr)
    return 1
