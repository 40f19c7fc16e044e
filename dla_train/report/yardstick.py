"""What counting alone achieves on the same validation windows."""

import torch
from torch.utils.data import Dataset

from dla_data.ngram import BigramModel
from dla_data.token_file import TokenFile


def bigram_loss(train: TokenFile, validation_windows: "Dataset[torch.Tensor]", vocab_size: int) -> float:
    """Nats per token of a bigram model fitted to the training tokens, over all targets of windows `[window + 1]`."""
    model = BigramModel.fit(train.read(0, train.tokens), vocab_size)
    windows = torch.stack([validation_windows[index] for index in range(len(validation_windows))])  # type: ignore[arg-type]
    return model.nll(windows[:, :-1].numpy(), windows[:, 1:].numpy())
