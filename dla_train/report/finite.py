"""Numbers that JSON can express."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """`value` with None for numbers that JSON cannot express: nan, and inf (such as the perplexity of a huge loss)."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
