"""What a command says that is given no recipe."""

import shlex
from collections.abc import Sequence

from dla_train.errors import UsageError


def missing_recipe(command: str, settings: Sequence[str]) -> UsageError:
    """The error; a setting without `=` was probably meant to be the recipe."""
    needs = f"dla-train {command} needs --recipe NAME_OR_PATH"
    meant = next((setting for setting in settings if "=" not in setting), None)
    if meant is not None:
        return UsageError(f"{needs}. Did you mean --recipe {shlex.quote(meant)}?")
    return UsageError(f"{needs}; `dla-train recipes` lists the shipped ones.")
