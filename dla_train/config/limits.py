"""The largest numbers that a recipe may hold: far above what anybody trains, and far below what overflows 64 bits or
brings a machine down before an error can be reported."""

MOST_STEPS = 10**9
MOST_WINDOWS = 2**24
"""Windows in a step."""
LONGEST_WINDOW = 2**31 - 1
MOST_PROCESSES = 1024
"""Processes beside the training process, or threads of one process."""


def require_at_most(name: str, value: int | None, most: int) -> None:
    """Refuse a number that is larger.

    Raises:
        ValueError: names it, what was given and what is allowed.
    """
    if value is not None and value > most:
        raise ValueError(f"{name} is {value}; it must be at most {most:,}")
