"""A text that the model continues, so that a person can see what it has learned."""

from pathlib import Path

import torch

from dla_data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from dla_train.models import LanguageModel, generate
from dla_train.report.config import ReportConfig


def write_sample(model: LanguageModel, tokenizer_path: Path, config: ReportConfig, seed: int) -> str:
    """The continuation of `config.prompt`, which must not be None; the same for the same seed and weights."""
    assert config.prompt is not None
    tokenizer = load_tokenizer(tokenizer_path)
    # As in training, without the special tokens that a tokenizer may put around a text.
    ids = tokenizer.encode(config.prompt, add_special_tokens=False).ids
    if not ids:  # a document begins after the end of the one before
        end = tokenizer.token_to_id(END_OF_DOCUMENT)
        assert end is not None, "no data is prepared with a tokenizer that has none"
        ids = [end]
    model.eval()
    tokens = generate(
        model,
        torch.tensor(ids),
        config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        generator=torch.Generator().manual_seed(seed),
    )
    return tokenizer.decode(tokens.tolist())
