"""`dla-train keys`: what the keys of a recipe mean."""

import argparse
from typing import Any

from dla_train.errors import UsageError


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "keys",
        help="what the keys of a recipe mean, with their defaults",
        description=__doc__,
        usage="dla-train keys [SECTION_OR_KEY]",
        epilog="examples: dla-train keys; dla-train keys training; dla-train keys model.mixer.memory.steer",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="SECTION_OR_KEY", nargs="?", help="these sections, or those with that key or kind"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Print the sections."""
    from dla_train.config.explain import sections
    from dla_train.config.overrides import nearest

    if settings:
        raise UsageError(f"dla-train keys takes one section or key, given {settings[0]} as well.")
    found = sections()
    if name := (options.name or "").partition("=")[0].strip("."):
        chosen = (
            [section for section in found if section.is_below(name)]
            or [section for section in found if section.has(name)]
            or [section for section in found if section.kind == name]
        )
        if not chosen:
            known = {key for section in found for key in section.keys}
            guess = nearest(name.rpartition(".")[2], known)
            hint = f" Did you mean {guess}?" if guess else ""
            raise UsageError(f"a recipe has no section or key {name}.{hint} `dla-train keys` lists all.")
        found = chosen
    print("\n\n".join(section.text() for section in found))
    return 0
