"""The batch script: made from the package's template or the user's, with all values from the user quoted for bash."""

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from dla_train.errors import UsageError

_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
# Placeholders that every template needs.
_REQUIRED = ("DIRECTIVES", "COMMAND")


def template_text(path: Path | None) -> str:
    """The template at `path`, or the one of the package.

    Raises:
        UsageError: it cannot be read.
    """
    if path is None:
        return (resources.files("dla_train.slurm") / "job.sh").read_text("utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the template {path}: {error}. Check --template.") from error


def array_template() -> str:
    """The package's template of the script that runs, in each task of an array job, the script of its run."""
    return (resources.files("dla_train.slurm") / "array.sh").read_text("utf-8")


def fill(template: str, values: Mapping[str, str], shown_as: str, required: Sequence[str] = _REQUIRED) -> str:
    """Replace each `@NAME@` in the template by its value from `values`, which must be quoted for bash already.

    Raises:
        UsageError: the template has an unknown placeholder, or lacks a required one.
    """
    found = set(_PLACEHOLDER.findall(template))
    if unknown := sorted(found - set(values)):
        raise UsageError(
            f"the template {shown_as} has @{unknown[0]}@; the placeholders are "
            f"{', '.join(f'@{name}@' for name in values)}."
        )
    if missing := [name for name in required if name not in found]:
        raise UsageError(f"the template {shown_as} lacks @{missing[0]}@; `dla-train submit --print-template` has all.")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def quoted(words: Sequence[str]) -> str:
    """`words` quoted so that bash reads back exactly these."""
    return shlex.join(words)


def require_printable(text: str, what: str) -> None:
    """Refuse line breaks and other unprintable characters: they would end a comment or a line of the script.

    Raises:
        UsageError: there is one.
    """
    if not text.isprintable():
        raise UsageError(f"{what} is {text!r}; a job takes printable characters only. Choose another one.")
