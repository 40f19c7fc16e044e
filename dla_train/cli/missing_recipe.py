"""What a command says that is given no recipe."""

from collections.abc import Sequence

from dla_train.errors import UsageError


def missing_recipe(command: str, settings: Sequence[str]) -> UsageError:
    """The error; a first setting without `=` was probably meant to be the recipe."""
    needs = f"dla-train {command} needs --recipe NAME_OR_PATH"
    if settings and "=" not in settings[0]:
        return UsageError(f"{needs}. Did you mean --recipe {settings[0]}?")
    return UsageError(f"{needs}; `dla-train recipes` lists the shipped ones.")
