"""`${data.vocab_size}` in a recipe stands for that key's value. A literal `${` in a text must be written `\\${`."""

import re
from collections.abc import Sequence
from typing import Any

_OPENING = re.compile(r"(\\*)\$\{")


def escaped(value: Any) -> Any:
    """`value` with every text in it, at any depth, escaped so that OmegaConf reads it as it is.

    OmegaConf treats backslashes specially only before `${`, where two of them stand for one.
    """
    if isinstance(value, str):
        return _OPENING.sub(lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {name: escaped(inner) for name, inner in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list | tuple) else value


def referred(value: Any) -> list[str]:
    """The keys that a value refers to: `data.window` in `${data.window}`."""
    if not isinstance(value, str):
        return []
    return [found[2] for found in re.finditer(r"(\\*)\$\{([\w.-]+)\}", value) if len(found[1]) % 2 == 0]


def value_at(values: Any, key: Sequence[object]) -> Any:
    """The value at `key` in nested sections and lists, or None."""
    for part in key:
        if isinstance(values, list) and str(part).isdigit() and int(str(part)) < len(values):
            values = values[int(str(part))]
        else:
            values = values.get(str(part)) if isinstance(values, dict) else None
    return values
