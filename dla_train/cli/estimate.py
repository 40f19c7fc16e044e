"""`dla-train estimate`: parameters, FLOPs, memory and days of a recipe, before anything is launched."""

import argparse
from typing import Any

from dla_train.cli.missing_recipe import missing_recipe
from dla_train.errors import UsageError

_EXAMPLES = """\
Nothing is trained or read: the model is built without memory, and data need not be there. Parameters, gradients,
optimizer and FLOPs are exact; activations are counted from what every module keeps; speed follows from the share
of the device's peak that you expect, which the run then logs as mfu.

examples:
  dla-train estimate --recipe mamba2-dla-780m
  dla-train estimate --recipe gdn-dla-1.3b --devices 8 --device h200
  dla-train estimate --recipe mamba2-dla-780m --utilization 0.4 model.mixer.memory.capacity=15
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "estimate",
        help="what a recipe costs: parameters, FLOPs, memory, days",
        description=__doc__,
        usage="dla-train estimate --recipe NAME [--devices N] [--device NAME] [--utilization X] [key=value ...]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="NAME_OR_PATH", help="a shipped recipe's name, or the path of a .yaml file")
    parser.add_argument(
        "--devices", metavar="N", type=int, help="how many devices train together (what strategy says, else 1)"
    )
    parser.add_argument(
        "--device", metavar="NAME", default="h100", help="h100 (the default), h200, b200, a100-80gb, ..."
    )
    parser.add_argument(
        "--utilization",
        "--utilisation",  # its name until American spelling won
        metavar="SHARE",
        type=float,
        default=0.3,
        help="share of the device's peak to reckon with (0.3)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print the estimate."""
    if options.recipe is None:
        raise missing_recipe("estimate", settings)
    if options.devices is not None and options.devices < 1:
        raise UsageError(f"--devices is {options.devices}; it must be at least 1.")
    if not 0 < options.utilization <= 1:
        raise UsageError(
            f"--utilization is {options.utilization:g}; it must be above 0 and at most 1, a share of the peak."
        )
    from dla_train.config.catalog import find
    from dla_train.config.load import load
    from dla_train.estimate.devices import device_named, devices_for

    device = device_named(options.device)
    loaded = load(find(options.recipe), settings)
    devices = devices_for(loaded, options.devices)
    from dla_train.estimate.estimate import estimate  # imports torch, after all checks that do not need it
    from dla_train.estimate.text import render

    print(render(estimate(loaded, device, devices, options.utilization)), end="")
    return 0
