"""Training of language models with Dynamic Linear Attention."""

from __future__ import annotations

TYPE_CHECKING = False  # not imported from typing: Ctrl-C before the command's `main` runs would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from dla_train.export.load import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is first used: the command line must not wait for it."""
    if name == "load_model":
        from dla_train.export.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
