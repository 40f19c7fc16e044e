"""Change-point recall: segments with themes of their own, rare needles in them, and questions at the end."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dla_data.synthetic.draws import distinct, integers, permutation, uniform
from dla_data.synthetic.examples import IGNORED, Examples, as_examples


@dataclass(frozen=True, kw_only=True)
class ChangePoint:
    """Text whose subject changes abruptly at unknown places, with facts among it that are asked for at the end.

    With S segments, m needles in each, a vocabulary of V ids (q = V // 4) and a window of T tokens:

        a a k1 v1 a a a b b b b k2 v2 b c k3 v3 c c c c ... 0 k3 0 k1 0 k2        inputs
        - - -  -  - - - - - - - -  -  - - -  -  - - - -     - v3 - v1 - v2        targets; - is IGNORED (-100)

    * the last 2 S m tokens ask for every needle once, in random order: id 0, then the key; the value is the target of
      the key, and never stands in the inputs there;
    * the T - 2 S m tokens before are cut into S segments of at least `shortest` tokens; all ways to cut are equally
      likely, but for the effect of two cuts falling together;
    * a theme is a set of (V - 2q) // themes ids of 2q to V - 1, no id in two themes. The segments of an example have
      different themes; every token of a segment that is no needle is any id of its theme, independently;
    * a needle is a key followed by its value, both in the same segment, at an even distance from the segment's start.
      Keys are different ids of 1 to q - 1, values different ids of q to 2q - 1.

    Attributes:
        segments: S; of several numbers, each example takes one, all equally likely.
        needles: m, of each segment.
        shortest: tokens of a segment, at least.
        themes: how many there are to choose from.
    """

    kind: Literal["change_point"] = "change_point"
    segments: tuple[int, ...]
    needles: int = 1
    shortest: int = 8
    themes: int = 16

    def __post_init__(self) -> None:
        if not self.segments or min(self.segments) < 1:
            raise ValueError(f"segments is {list(self.segments)}; it must hold at least one number, each at least 1")
        if self.needles < 1:
            raise ValueError(f"needles is {self.needles}; it must be at least 1")
        if self.shortest < 2 * self.needles:
            raise ValueError(
                f"shortest is {self.shortest}; it must be at least {2 * self.needles}, two tokens for each needle"
            )
        if self.themes < max(self.segments):
            raise ValueError(f"themes is {self.themes}; it must be at least {max(self.segments)}, one for each segment")

    def check(self, vocab_size: int, window: int) -> None:
        """Raise ValueError if a window or the vocabulary is too small for the largest number of segments."""
        most = max(self.segments)
        asked = most * self.needles
        if window < most * self.shortest + 2 * asked:
            raise ValueError(
                f"segments goes up to {most}, which needs {most * self.shortest + 2 * asked} tokens ({most} x shortest "
                f"{self.shortest}, and 2 for each of {asked} questions); window is only {window}"
            )
        needed = max(4 * (asked + 1), 4 * self.themes)  # V // 4 - 1 keys; V - 2 (V // 4) ids for two words to a theme
        if vocab_size < needed:
            raise ValueError(
                f"vocab_size is {vocab_size}; {asked} needles and {self.themes} themes need at least {needed}"
            )

    def examples(self, vocab_size: int, window: int, seed: int, indices: npt.NDArray[np.int64]) -> Examples:
        """See `TokenTask.examples`."""
        self.check(vocab_size, window)
        inputs = np.zeros((len(indices), window), dtype=np.int64)
        targets = np.full((len(indices), window), IGNORED, dtype=np.int64)
        choice = self._choice(seed, indices)
        for number, segments in enumerate(self.segments):
            rows = np.flatnonzero(choice == number)
            if rows.size:
                part = self._with(segments, vocab_size, window, seed, indices[rows])
                inputs[rows], targets[rows] = part
        return as_examples(inputs, targets)

    def answers(self, window: int, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `TokenTask.answers`."""
        return self.needles * np.asarray(self.segments)[self._choice(seed, indices)]

    def _choice(self, seed: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`[N]`: which of `segments` each example takes."""
        return integers(seed, "change_point segments", indices, 1, len(self.segments))[:, 0]

    def _with(
        self, segments: int, vocab_size: int, window: int, seed: int, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows, quarter, asked = np.arange(len(indices))[:, None], vocab_size // 4, segments * self.needles
        context = window - 2 * asked
        starts, lengths = self._cuts(segments, context, seed, indices)

        which = (np.arange(context)[None, :, None] >= starts[:, None, :]).sum(axis=2) - 1  # [N, context]
        theme = distinct(seed, "change_point themes", indices, segments, self.themes)
        words = (vocab_size - 2 * quarter) // self.themes
        word = integers(seed, "change_point words", indices, context, words)
        text = 2 * quarter + np.take_along_axis(theme, which, axis=1) * words + word

        keys = 1 + distinct(seed, "change_point keys", indices, asked, quarter - 1)
        values = quarter + distinct(seed, "change_point values", indices, asked, quarter)
        at = self._needle_places(starts, lengths, seed, indices)  # [N, S m], where each key stands
        text[rows, at] = keys
        text[rows, at + 1] = values

        order = permutation(seed, "change_point questions", indices, asked)
        questions = np.zeros((len(indices), 2 * asked), dtype=np.int64)
        questions[:, 1::2] = np.take_along_axis(keys, order, axis=1)
        targets = np.full((len(indices), window), IGNORED, dtype=np.int64)
        targets[:, context + 1 :: 2] = np.take_along_axis(values, order, axis=1)
        return np.concatenate([text, questions], axis=1), targets

    def _cuts(
        self, segments: int, context: int, seed: int, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Starts and lengths of the segments, `[N, S]`: what is left after `shortest` for each is shared at random."""
        left = context - segments * self.shortest
        cuts = np.sort(integers(seed, "change_point cuts", indices, segments - 1, left + 1), axis=1)
        edges = np.pad(cuts, ((0, 0), (1, 1)))
        edges[:, -1] = left
        edges += np.arange(segments + 1) * self.shortest
        return edges[:, :-1], np.diff(edges, axis=1)

    def _needle_places(
        self,
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        seed: int,
        indices: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """`[N, S m]`: for each segment m of its pairs of tokens, all sets of them equally likely."""
        rows, segments = starts.shape
        pairs = lengths // 2
        # A stream of its own for each segment, so that the draws do not depend on the longest segment of the batch.
        order = np.concatenate(
            [
                uniform(seed, f"change_point places {number}", indices, int(pairs.max()))[:, None]
                for number in range(segments)
            ],
            axis=1,
        )
        order[np.arange(order.shape[2]) >= pairs[:, :, None]] = np.inf
        chosen = np.argsort(order, axis=2, kind="stable")[:, :, : self.needles]
        return (starts[:, :, None] + 2 * chosen).reshape(rows, segments * self.needles)
