"""Checks of single fields, with messages that name the field, what was given and what is allowed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

LARGEST_COUNT = 2**24
"""No size may be larger: the product of two of them is then at most 2^48, far from the limit of 64 bits."""


def check_kind(config: Any) -> None:
    """Refuse (ValueError, as all checks here) a `kind` that is not the default of its class."""
    kind = next(field.default for field in dataclasses.fields(config) if field.name == "kind")
    if config.kind != kind:
        raise ValueError(f"kind is {config.kind!r}; {type(config).__name__} allows only {kind!r}")


def check_count(name: str, value: Any) -> None:
    """Refuse all but whole numbers from 1 to `LARGEST_COUNT`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if value > LARGEST_COUNT:
        raise ValueError(f"{name} is {value}; it must be at most {LARGEST_COUNT:,}")


def check_product(one: str, first: int, other: str, second: int) -> None:
    """Refuse two counts whose product is above `LARGEST_COUNT`."""
    if first * second > LARGEST_COUNT:
        raise ValueError(f"{one} is {first} and {other} {second}; their product must be at most {LARGEST_COUNT:,}")


def check_positive(name: str, value: Any) -> None:
    """Refuse all but finite numbers above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number greater than 0")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse all that is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def is_number(value: Any) -> bool:
    """Whether `value` is an int or float; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
