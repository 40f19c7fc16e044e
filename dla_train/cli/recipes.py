"""`dla-train recipes`: what is there, with one line each."""

import argparse
from typing import Any

from dla_train.errors import UsageError


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "recipes",
        help="list the shipped recipes",
        description=__doc__,
        usage="dla-train recipes [--costs]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--costs", action="store_true", help="a table of parameters and MFLOPs per token instead of the descriptions"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print the recipes, or with --costs their table."""
    from dla_train.config.catalog import shipped

    if settings:
        raise UsageError(f"dla-train recipes takes no settings, given {settings[0]}.")
    found = shipped()
    if options.costs:
        from dla_train.config.load import load
        from dla_train.estimate.overview import overview

        print(overview([load(file) for file in found]))
        return 0
    width = max((len(recipe.name) for recipe in found), default=0)
    for recipe in found:
        print(f"{recipe.name:<{width}}  {recipe.description}")
    return 0
