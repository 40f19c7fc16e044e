"""What every token task makes, and what it must be able to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The target of a position where nothing is asked, as in `torch.nn.functional.cross_entropy`."""


class Examples(NamedTuple):
    """Inputs and targets, int64 `[T]` or `[N, T]`; `targets[t]` is the answer after `inputs[: t + 1]`, or `IGNORED`."""

    inputs: Tensor
    targets: Tensor


class TokenTask(Protocol):
    """A task over token ids; made by `Mqar`, `ChangePoint` and `Copy`."""

    @property
    def kind(self) -> str:
        """Its name in a recipe."""
        ...

    def check(self, vocab_size: int, window: int) -> None:
        """Raise ValueError, naming the field, if there are no examples of these sizes."""
        ...

    def examples(self, vocab_size: int, window: int, seed: int, indices: npt.NDArray[np.int64]) -> Examples:
        """Examples number `indices` `[N]` of `seed`, as `[N, window]`; each depends on its own index only."""
        ...

    def answers(self, window: int, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 `[N]`: how many targets each of these examples has, without making it."""
        ...


def as_examples(inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> Examples:
    """Both as tensors."""
    import torch

    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))
