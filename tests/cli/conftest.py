"""What a user has who types a command."""

import importlib.util
from collections.abc import Callable

import pytest


@pytest.fixture
def hide_lm_eval(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and lm-eval is not installed."""
    find = importlib.util.find_spec

    def hide() -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
        )

    return hide
