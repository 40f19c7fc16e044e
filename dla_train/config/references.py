"""`${data.vocab_size}` in a recipe stands for that key's value. A text that has `${` itself must be written `\\${`."""

import re
from typing import Any

_OPENING = re.compile(r"(\\*)\$\{")


def escaped(value: Any) -> Any:
    """`value` with every text in it, at any depth, written so that OmegaConf reads just that text.

    Backslashes mean something to OmegaConf only where they stand before `${`: two of them are one.
    """
    if isinstance(value, str):
        return _OPENING.sub(lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {name: escaped(inner) for name, inner in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list | tuple) else value
