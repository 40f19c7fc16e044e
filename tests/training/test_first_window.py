"""The first window of a batch of any kind, as the model reads it."""

import pytest
import torch

from dla_data.separate_windows import SeparateWindow, lay_in_a_row
from dla_data.synthetic import Examples
from dla_train.training.batch import first_window

TWO = torch.arange(14).reshape(2, 7)  # windows of 6


@pytest.mark.parametrize(
    ("most", "tokens", "ends"),
    [(100, [0, 1, 2, 3, 4, 5], [2, 5, 6]), (6, [0, 1, 2, 3, 4, 5], [2, 5, 6]), (5, [0, 1, 2, 3, 4], [2, 5])],
)
def test_documents_that_are_kept_apart(most, tokens, ends):
    starts = [torch.tensor([0, 2, 5]), torch.tensor([0, 4])]
    batch = lay_in_a_row([SeparateWindow(*one) for one in zip(TWO, starts, strict=True)])
    assert first_window(batch, most) == (tokens, ends)


def test_joined_documents_are_one_text():
    assert first_window(TWO, 100) == ([0, 1, 2, 3, 4, 5], [6])
    assert first_window(TWO, 4) == ([0, 1, 2, 3], [4])


def test_examples():
    assert first_window(Examples(TWO, TWO), 100) == ([0, 1, 2, 3, 4, 5, 6], [7])
