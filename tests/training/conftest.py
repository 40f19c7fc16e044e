"""What several tests of training do to a run."""

from collections.abc import Callable

import pytest
import torch

from dla_train.models import LanguageModel


@pytest.fixture
def multiply_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`multiply_loss(factor, *steps, first=1)`: of the given training steps; each step has two micro-batches, and
    `first` is the next one."""
    loss = LanguageModel.loss

    def at(factor: float, *steps: int, first: int = 1) -> None:
        calls = [0]

        def multiplied(self: LanguageModel, *arguments: object, **named: object) -> torch.Tensor:
            if torch.is_grad_enabled():
                calls[0] += 1
            is_chosen = first + (calls[0] - 1) // 2 in steps and torch.is_grad_enabled()
            return loss(self, *arguments, **named) * (factor if is_chosen else 1.0)  # type: ignore[arg-type]

        monkeypatch.setattr(LanguageModel, "loss", multiplied)

    return at
