"""`dla-train show NAME`: a recipe with every value written out; the output is itself a recipe."""

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "show",
        help="print a recipe with every value written out",
        description=__doc__,
        usage="dla-train show NAME_OR_PATH [key=value ...]",
        epilog="example: dla-train show tiny model.mixer.memory=fenwick > mine.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="NAME_OR_PATH", help="a shipped recipe's name, or the path of a .yaml file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print the recipe."""
    from dla_train.config.catalog import find
    from dla_train.config.load import load
    from dla_train.config.show import to_yaml

    print(to_yaml(load(find(options.recipe), settings).recipe), end="")
    return 0
