"""One thing that a preflight looks at, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dla_data.counted import counted
from dla_train.estimate.text import table


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found of one thing.

    Attributes:
        what: the thing. found: in words. is_right: whether it is as it should be; None where nothing can be wrong.
    """

    what: str
    found: str
    is_right: bool | None = None


def render(name: str, checks: Sequence[Check]) -> str:
    """All checks of the recipe `name` as a Markdown table, and what follows from them."""
    verdicts = {True: "ok", False: "WRONG", None: ""}
    rows = [(check.what, check.found, verdicts[check.is_right]) for check in checks]
    wrong = [check.what for check in checks if check.is_right is False]
    judged = [check for check in checks if check.is_right is not None]
    end = f"{counted(len(wrong), 'check')} of {len(judged)} failed: {', '.join(wrong)}." if wrong else "All is well."
    return f"# Preflight of {name}\n\n{table(('what', 'found', ''), rows, frozenset())}\n\n{end}\n"
