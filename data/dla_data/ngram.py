"""What counting alone achieves: the loss of a smoothed bigram model, the line a trained model has to get below.

Interpolated absolute discounting over a Kneser-Ney unigram. With c(h, w) the count of token w after token h, N(h, .)
the number of different tokens after h, N(., w) the number of different tokens before w, V the vocabulary and D a
discount:

    p(w | h)  = max(c(h, w) - D2, 0) / c(h) + D2 N(h, .) / c(h) * p1(w)          p1(w) alone where h was never seen
    p1(w)     = max(N(., w) - D1, 0) / N    + D1 |{w: N(., w) > 0}| / N * 1 / V  with N = sum over w of N(., w)

Each D is n1 / (n1 + 2 n2), n1 and n2 being how many counts of that level are 1 and 2 (Ney, Essen, Kneser 1994).
"""

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError


class BigramModel:
    """A smoothed bigram model; made by `BigramModel.fit`. Every token has a probability above 0 in every context."""

    def __init__(
        self,
        vocab_size: int,
        pairs: npt.NDArray[np.int64],
        pair_mass: npt.NDArray[np.float64],
        back_off: npt.NDArray[np.float64],
        unigram: npt.NDArray[np.float64],
    ) -> None:
        """Take the parts of the equation above.

        pairs: int64 [seen], sorted, `h * vocab_size + w` of every pair seen; pair_mass: [seen], its first term;
        back_off: [vocab_size], the factor of p1 by h; unigram: [vocab_size], p1.
        """
        self.vocab_size = vocab_size
        self._pairs = pairs
        self._pair_mass = pair_mass
        self._back_off = back_off
        self._unigram = unigram

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, vocab_size: int) -> "BigramModel":
        """Count the pairs of neighbors in `tokens`, int [n] with n at least 2, all below `vocab_size`.

        Takes about a second and 100 MB for 3 million tokens; everything is held in memory.

        Raises:
            DataError: fewer than two tokens, or a token outside the vocabulary.
        """
        sequence = np.asarray(tokens).astype(np.int64).reshape(-1)
        if sequence.size < 2:
            raise DataError(f"a bigram model needs at least 2 tokens to count, given {sequence.size}.")
        _require_inside(sequence, vocab_size)
        pairs, counts = np.unique(sequence[:-1] * vocab_size + sequence[1:], return_counts=True)
        before, after = np.divmod(pairs, vocab_size)

        distinct_before = np.bincount(after, minlength=vocab_size)  # N(., w) [V]
        discount = _discount(distinct_before)
        leftover = discount * np.count_nonzero(distinct_before) / pairs.size
        unigram = np.maximum(distinct_before - discount, 0) / pairs.size + leftover / vocab_size

        total = np.bincount(sequence[:-1], minlength=vocab_size)  # c(h) [V]
        distinct_after = np.bincount(before, minlength=vocab_size)  # N(h, .) [V]
        discount = _discount(counts)
        back_off = np.where(total > 0, discount * distinct_after / np.maximum(total, 1), 1.0)
        return cls(vocab_size, pairs, (counts - discount) / total[before], back_off, unigram)

    def probability(self, contexts: npt.ArrayLike, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """p(token | context), elementwise over int arrays that broadcast together.

        Raises:
            DataError: a token outside the vocabulary.
        """
        context = np.asarray(contexts).astype(np.int64)
        token = np.asarray(tokens).astype(np.int64)
        _require_inside(context, self.vocab_size)
        _require_inside(token, self.vocab_size)
        wanted = context * self.vocab_size + token
        place = np.minimum(np.searchsorted(self._pairs, wanted), self._pairs.size - 1)
        seen = np.where(self._pairs[place] == wanted, self._pair_mass[place], 0.0)
        return seen + self._back_off[context] * self._unigram[token]

    def nll(self, inputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
        """Mean negative log likelihood, nats per token, of int arrays (or CPU tensors) of equal shape.

        Raises:
            DataError: shapes differ, nothing given, or a token outside the vocabulary.
        """
        contexts, tokens = np.asarray(inputs), np.asarray(targets)
        if contexts.shape != tokens.shape or not tokens.size:
            raise DataError(
                f"inputs {contexts.shape} and targets {tokens.shape} must have the same shape and not be empty."
            )
        return float(-np.log(self.probability(contexts, tokens)).mean())


def _discount(counts: npt.NDArray[np.int64]) -> float:
    """n1 / (n1 + 2 n2), kept inside (0, 1): without a discount, nothing would be left for what was never seen."""
    ones, twos = int(np.count_nonzero(counts == 1)), int(np.count_nonzero(counts == 2))
    return min(max(ones / max(ones + 2 * twos, 1), 0.05), 0.95)


def _require_inside(tokens: npt.NDArray[np.int64], vocab_size: int) -> None:
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise DataError(
            f"tokens reach from {tokens.min()} to {tokens.max()}, but the vocabulary is 0 to {vocab_size - 1}. "
            "Use the tokens and the vocabulary of one tokenizer."
        )
