"""The largest numbers that a recipe may hold: far above what anybody trains, and far below what overflows 64 bits or
takes a machine down before anything can say why."""

MOST_STEPS = 10**9
MOST_WINDOWS = 2**24
"""In a step."""
LONGEST_WINDOW = 2**31 - 1
MOST_PROCESSES = 1024
"""Beside the training process, and threads of one."""


def require_at_most(name: str, value: int | None, most: int) -> None:
    """Refuse a number that is larger.

    Raises:
        ValueError: names it, what was given and what is allowed.
    """
    if value is not None and value > most:
        raise ValueError(f"{name} is {value}; it must be at most {most:,}")
