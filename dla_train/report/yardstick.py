"""The loss of a bigram model on the same validation windows, as a yardstick."""

import numpy as np
import numpy.typing as npt
import torch

from dla_data.ngram import BigramModel
from dla_train.data.recipe_data import Windows


def bigram_loss(train: npt.NDArray[np.int64], validation_windows: Windows, vocab_size: int) -> float:
    """Nats per token of a bigram model fitted to the training tokens, over all targets of windows `[window + 1]`."""
    model = BigramModel.fit(train, vocab_size)
    text = [validation_windows[index] for index in range(len(validation_windows))]
    windows = torch.stack(text)  # type: ignore[arg-type]  # data with tokens to count has plain windows
    return model.nll(windows[:, :-1].numpy(), windows[:, 1:].numpy())
