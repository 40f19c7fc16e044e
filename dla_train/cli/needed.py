"""What a command says that lacks options which it cannot do without."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from dla_train.errors import UsageError

TRAINED = "a run folder, one of its checkpoints/step-..., or a folder that dla-train export made"


class Needed(NamedTuple):
    """An option that must be given.

    option: with its metavar, as the command's usage shows it: `--out DIR`.
    meaning: what to give; shown where the option is missing.
    value: what was given, or None.
    """

    option: str
    meaning: str
    value: object


def require_options(command: str, needed: Sequence[Needed], others: Sequence[str]) -> None:
    """Require all options at once; `others` are the command's words that belong to no option.

    Raises:
        UsageError: names every option that is missing. A word without `=` was probably meant for the first of them.
    """
    missing = [each for each in needed if each.value is None]
    if not missing:
        return
    meant = next((word for word in others if "=" not in word), None)
    if meant is not None:
        option = missing[0].option.partition(" ")[0]
        names = ", ".join(each.option for each in missing)
        raise UsageError(f"dla-train {command} needs {names}. Did you mean {option} {shlex.quote(meant)}?")
    raise UsageError(f"dla-train {command} needs {', '.join(f'{each.option} ({each.meaning})' for each in missing)}.")
