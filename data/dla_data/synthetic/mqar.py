"""Multi-query associative recall, as the Zoology paper defines it (arXiv 2312.04927)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dla_data.synthetic.draws import distinct, integers, permutation, weighted
from dla_data.synthetic.examples import IGNORED, Examples, as_examples

ZOOLOGY_POWER = 0.01


@dataclass(frozen=True, kw_only=True)
class Mqar:
    """Key-value pairs, then every key again, in places whose distance from the pairs follows a power law.

    With n pairs, a vocabulary of V ids (h = V // 2) and a window of T tokens:

        k1 v1 k2 v2 ... kn vn  ·  ·  k3  ·  k1  ·  ·  ·  ...        inputs
        -  -  -  -      -  -   -  -  v3  -  v1  -  -  -             targets; - is IGNORED (-100)

    * keys are n different ids of 1 to h - 1, values n different ids of h to V - 1, both in random order;
    * the rest has (T - 2n) // 2 places of two tokens; key i stands on the first token of place g_i, counted from 0, and
      its value is the target there. The places are drawn one after the other without replacement, place g with
      probability proportional to (g + 1) ** (power - 1), and the keys are assigned to them at random. In Zoology's
      program key i takes the i-th place drawn, so early keys are asked for early: from the position of a query alone,
      its pair can be guessed in 16.4% of cases for 8 pairs in 64 tokens (21.8% in 32) instead of 12.5%;
    * every other token (the dots) is filler: any id of 0 to V - 1, or 0 throughout if `random_filler` is false. Answers
      never stand in the inputs after their query.

    Zoology's pairs are packed at the start, where nothing else competes for the memory. With `scattered` they stand
    apart, and a memory must find them among the filler:

        ·  ·  k1 v1  ·  ·  ·  ·  k2 v2  ·  ...  0 k2 0 k1        inputs
        -  -  -  -   -  -  -  -  -  -   -  ...  - v2 - v1        targets

    * the last 2n tokens are the questions, in random order, each id 0 and the key;
    * the T - 2n tokens before have (T - 2n) // 2 places of two tokens; the pairs stand on n of them, all sets equally
      likely, and the rest is filler. Random filler is 0 or a value, never a key, which would then have two values.

    Attributes:
        pairs: n; of several numbers, each example takes one, all equally likely.
        power: 1 spreads the queries evenly, 0.01 (Zoology's) puts most of them soon after the pairs. Not used if
            `scattered`, and then left at 0.01.
        random_filler: whether filler is random ids or 0.
        scattered: pairs among the filler, queries at the end.
    """

    kind: Literal["mqar"] = "mqar"
    pairs: tuple[int, ...]
    power: float = ZOOLOGY_POWER
    random_filler: bool = True
    scattered: bool = False

    def __post_init__(self) -> None:
        if not self.pairs or min(self.pairs) < 1:
            raise ValueError(f"pairs is {list(self.pairs)}; it must hold at least one number, each at least 1")
        if self.power <= 0:
            raise ValueError(f"power is {self.power}; it must be above 0")
        if self.scattered and self.power != ZOOLOGY_POWER:
            raise ValueError(
                f"power is {self.power} with scattered true, where queries stand at the end and no gaps are drawn; "
                "leave power out, or set scattered false"
            )

    def check(self, vocab_size: int, window: int) -> None:
        """Raise ValueError if a window or the vocabulary is too small for the largest number of pairs."""
        most = max(self.pairs)
        if 4 * most > window:
            raise ValueError(
                f"pairs goes up to {most}, which needs 4 x {most} = {4 * most} tokens; window is only {window}. Use "
                f"at most {window // 4} pairs, or a longer window"
            )
        if vocab_size // 2 - 1 < most:
            raise ValueError(
                f"pairs goes up to {most}, but vocab_size {vocab_size} has only {max(vocab_size // 2 - 1, 0)} keys; "
                f"it must be at least {2 * most + 2}"
            )

    def examples(self, vocab_size: int, window: int, seed: int, indices: npt.NDArray[np.int64]) -> Examples:
        """See `TokenTask.examples`."""
        self.check(vocab_size, window)
        if self.random_filler:
            half = vocab_size // 2
            kinds = vocab_size - half + 1 if self.scattered else vocab_size
            inputs = integers(seed, "mqar filler", indices, window, kinds)
            if self.scattered:
                inputs += np.where(inputs > 0, half - 1, 0)
        else:
            inputs = np.zeros((len(indices), window), dtype=np.int64)
        targets = np.full((len(indices), window), IGNORED, dtype=np.int64)
        choice = self._choice(seed, indices)
        for number, pairs in enumerate(self.pairs):
            rows = np.flatnonzero(choice == number)
            if rows.size:
                self._fill(pairs, vocab_size, seed, indices[rows], rows, inputs, targets)
        return as_examples(inputs, targets)

    def answers(self, window: int, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `TokenTask.answers`."""
        return np.asarray(self.pairs)[self._choice(seed, indices)]

    def _choice(self, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`[N]`: which of `pairs` each example takes."""
        return integers(seed, "mqar pairs", indices, 1, len(self.pairs))[:, 0]

    def _fill(
        self,
        pairs: int,
        vocab_size: int,
        seed: int,
        indices: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        inputs: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
    ) -> None:
        half = vocab_size // 2
        keys = 1 + distinct(seed, "mqar keys", indices, pairs, half - 1)
        values = half + distinct(seed, "mqar values", indices, pairs, vocab_size - half)
        rows = rows[:, None]
        if self.scattered:
            context = inputs.shape[1] - 2 * pairs
            at = 2 * distinct(seed, "mqar places", indices, pairs, context // 2)
            inputs[rows, at] = keys
            inputs[rows, at + 1] = values
            order = permutation(seed, "mqar questions", indices, pairs)
            inputs[rows, np.arange(context, inputs.shape[1], 2)] = 0
            asked_at = context + 1 + 2 * order
        else:
            inputs[rows, np.arange(0, 2 * pairs, 2)] = keys
            inputs[rows, np.arange(1, 2 * pairs, 2)] = values
            asked_at = self._spread(pairs, seed, indices, inputs.shape[1])
        inputs[rows, asked_at] = keys
        targets[rows, asked_at] = values

    def _spread(self, pairs: int, seed: int, indices: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.int64]:
        """`[N, pairs]`: where each key is asked for, if the pairs are packed."""
        places = (window - 2 * pairs) // 2
        weights = np.arange(1, places + 1, dtype=np.float64) ** (self.power - 1)
        drawn = weighted(seed, "mqar gaps", indices, pairs, weights)
        # In order of drawing, likely places come first, and a place would tell which pair is asked for.
        dealt = np.take_along_axis(drawn, permutation(seed, "mqar questions", indices, pairs), axis=1)
        return 2 * pairs + 2 * dealt
