"""A text that the model continues, to see with one's own eyes what it has learned."""

from pathlib import Path

import torch

from dla_data.tokenizer import load_tokenizer
from dla_train.models import LanguageModel, generate
from dla_train.report.config import ReportConfig


def write_sample(model: LanguageModel, tokenizer_path: Path, config: ReportConfig, seed: int) -> str:
    """The continuation of `config.prompt`, which must not be None; the same for the same seed and weights."""
    assert config.prompt is not None
    tokenizer = load_tokenizer(tokenizer_path)
    prompt = torch.tensor(tokenizer.encode(config.prompt).ids or [0])  # an empty prompt: the end of the document before
    model.eval()
    tokens = generate(
        model,
        prompt,
        config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        generator=torch.Generator().manual_seed(seed),
    )
    return tokenizer.decode(tokens.tolist())
