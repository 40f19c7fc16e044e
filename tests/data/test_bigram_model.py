"""The bigram model is a probability distribution, and a better guess than frequencies alone."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dla_data.errors import DataError
from dla_data.ngram import BigramModel

VOCABULARY = 256
TEXT = np.frombuffer(Path(json.decoder.__file__).read_bytes(), dtype=np.uint8)
TRAIN, HELD_OUT = TEXT[:-2000], TEXT[-2000:]


@pytest.fixture(scope="module")
def model() -> BigramModel:
    return BigramModel.fit(TRAIN, VOCABULARY)


def test_probabilities_of_every_context_sum_to_one(model: BigramModel) -> None:
    contexts, tokens = np.meshgrid(np.arange(VOCABULARY), np.arange(VOCABULARY), indexing="ij")
    probability = model.probability(contexts, tokens)
    assert probability.min() > 0
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    assert len(np.unique(TRAIN)) < VOCABULARY  # contexts never seen and tokens never seen are among them


def test_it_agrees_with_the_equations_counted_one_by_one() -> None:
    tokens = [0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 4, 0, 2, 1, 0]
    vocabulary = 6
    pairs = list(itertools.pairwise(tokens))
    count = {pair: pairs.count(pair) for pair in pairs}
    before = [len({h for h, w in count if w == token}) for token in range(vocabulary)]
    after = [len({w for h, w in count if h == token}) for token in range(vocabulary)]
    total = [sum(h == token for h, _ in pairs) for token in range(vocabulary)]

    def discount(values: list[int]) -> float:
        return values.count(1) / (values.count(1) + 2 * values.count(2))

    d1, d2, kinds = discount(before), discount(list(count.values())), sum(before)
    seen = sum(number > 0 for number in before)

    def expected(h: int, w: int) -> float:
        unigram = max(before[w] - d1, 0) / kinds + d1 * seen / kinds / vocabulary
        if total[h] == 0:
            return unigram
        return max(count.get((h, w), 0) - d2, 0) / total[h] + d2 * after[h] / total[h] * unigram

    model = BigramModel.fit(tokens, vocabulary)
    for h in range(vocabulary):
        for w in range(vocabulary):
            assert model.probability(h, w) == pytest.approx(expected(h, w), rel=1e-12)


def test_it_beats_frequencies_on_text_it_has_not_seen(model: BigramModel) -> None:
    counts = np.bincount(TRAIN, minlength=VOCABULARY) + 1.0
    unigram = -np.log(counts / counts.sum())[HELD_OUT[1:]].mean()
    bigram = model.nll(HELD_OUT[:-1], HELD_OUT[1:])
    assert bigram < unigram - 0.4
    assert model.nll(TRAIN[:-1], TRAIN[1:]) < bigram


def test_a_context_never_seen_backs_off_to_the_unigram(model: BigramModel) -> None:
    unseen = [token for token in range(VOCABULARY) if token not in TRAIN]
    tokens = np.arange(VOCABULARY)
    one, other = (model.probability(context, tokens) for context in unseen[:2])
    np.testing.assert_array_equal(one, other)
    # Kneser-Ney: what follows many different tokens is likelier than what is frequent after a few.
    distinct = np.array([len(set(TRAIN[:-1][TRAIN[1:] == token])) for token in tokens])
    assert np.array_equal(np.argsort(-one, kind="stable"), np.argsort(-distinct, kind="stable"))


def test_loss_is_the_mean_over_windows_and_takes_tensors(model: BigramModel) -> None:
    windows = torch.from_numpy(HELD_OUT[:1010].astype(np.int64)).reshape(10, 101)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    by_hand = -np.log(model.probability(inputs.numpy(), targets.numpy())).mean()
    assert model.nll(inputs, targets) == pytest.approx(by_hand)


@pytest.mark.parametrize("tokens", [[0, 0], [3, 2], [1, 1, 1, 1], [0, 1] * 50])
def test_tiny_counts_still_give_a_distribution(tokens: list[int]) -> None:
    model = BigramModel.fit(tokens, 5)
    for context in range(5):
        probability = model.probability(context, np.arange(5))
        assert probability.min() > 0
        assert probability.sum() == pytest.approx(1)


def test_input_that_does_not_fit_is_refused(model: BigramModel) -> None:
    with pytest.raises(DataError, match="at least 2 tokens to count, given 1"):
        BigramModel.fit([3], 5)
    with pytest.raises(DataError, match="reach from 0 to 5, but the vocabulary is 0 to 4"):
        BigramModel.fit([0, 5], 5)
    with pytest.raises(DataError, match="reach from 256 to 256"):
        model.nll([1], [256])
    with pytest.raises(DataError, match="same shape"):
        model.nll([1, 2], [1])
    with pytest.raises(DataError, match="not be empty"):
        model.nll([], [])
