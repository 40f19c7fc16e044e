"""A token task as a data set that a `DataLoader` reads."""

import hashlib
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from dla_data.synthetic.examples import Examples, TokenTask


class SyntheticExamples(Dataset[Examples]):
    """Examples 0 to `count - 1` of a task, made when they are asked for.

    Args:
        task: what to make. vocab_size: ids of the model. window: tokens of an example.
        seed: 0 <= seed < 2^64. count: how many there are.
    """

    def __init__(self, task: TokenTask, *, vocab_size: int, window: int, seed: int, count: int) -> None:
        task.check(vocab_size, window)
        self.task = task
        self.vocab_size = vocab_size
        self.window = window
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Examples:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Examples]:
        """What a `DataLoader` calls for a whole batch: many at once are made much faster than one by one."""
        inputs, targets = self.batch(np.asarray(indices, dtype=np.int64))
        return [Examples(*row) for row in zip(inputs, targets, strict=True)]

    def batch(self, indices: np.ndarray) -> Examples:
        """Examples `indices` `[N]`, as `[N, window]`."""
        return self.task.examples(self.vocab_size, self.window, self.seed, indices)

    def answers(self, indices: np.ndarray) -> int:
        """How many targets examples `indices` `[N]` have together."""
        return int(self.task.answers(self.window, self.seed, indices).sum())

    def fingerprint(self) -> str:
        """SHA-256 of the first examples: changes whenever a seed, a size or the generator itself does."""
        first = self.batch(np.arange(min(self.count, 64), dtype=np.int64))
        return hashlib.sha256(b"".join(part.numpy().astype("<i8").tobytes() for part in first)).hexdigest()
