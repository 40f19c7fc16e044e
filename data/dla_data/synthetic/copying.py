"""Copying: the whole past must be given back in order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dla_data.synthetic.draws import integers
from dla_data.synthetic.examples import IGNORED, Examples, as_examples


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Half a window of random symbols, a mark, and the symbols again.

    With a window of T = 2n tokens and a vocabulary of V ids: n symbols of 1 to V - 1, any of them more than once.

        s1 s2 ... sn  0  s1 ... s(n-1)        inputs
        -  -      -   s1 s2 ... sn            targets; - is IGNORED (-100)
    """

    kind: Literal["copy"] = "copy"

    def check(self, vocab_size: int, window: int) -> None:
        """Raise ValueError for an odd window, or a vocabulary of fewer than two symbols."""
        if window % 2:
            raise ValueError(f"window is {window}; the task copy needs an even number, half of it to be copied")
        if vocab_size < 3:
            raise ValueError(f"vocab_size is {vocab_size}; the task copy needs at least 3: a mark and two symbols")

    def examples(self, vocab_size: int, window: int, seed: int, indices: npt.NDArray[np.int64]) -> Examples:
        """See `TokenTask.examples`."""
        self.check(vocab_size, window)
        length = window // 2
        symbols = 1 + integers(seed, "copy symbols", indices, length, vocab_size - 1)
        mark = np.zeros((len(indices), 1), dtype=np.int64)
        targets = np.full((len(indices), window), IGNORED, dtype=np.int64)
        targets[:, length:] = symbols
        return as_examples(np.concatenate([symbols, mark, symbols[:, :-1]], axis=1), targets)

    def answers(self, window: int, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `TokenTask.answers`."""
        return np.full(len(indices), window // 2)
