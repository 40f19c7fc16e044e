"""Small corpora and token files that several test files read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dla_data.token_file import TokenFile, write_token_file
from dla_data.tokenizer import Encoded

WORDS = [
    "the",
    "state",
    "of",
    "a",
    "slot",
    "is",
    "the",
    "sum",
    "over",
    "one",
    "segment",
    "and",
    "every",
    "token",
    "joins",
]


def prose(seed: int, words: int = 400) -> str:
    """Text with a skewed word frequency, the same for the same seed."""
    random = np.random.default_rng(seed)
    picked = random.zipf(1.4, size=words) % len(WORDS)
    lines = [" ".join(WORDS[i] for i in row) for row in picked.reshape(-1, 8)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A directory of 30 text files, one of them in a subdirectory."""
    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    for number in range(29):
        (root / f"{number:02}.txt").write_text(prose(number))
    (root / "deep" / "last.txt").write_text(prose(29))
    return root


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable[..., TokenFile]:
    """Write documents given as lists of ids to a token file; keywords replace the defaults."""

    def write(documents: list[list[int]], name: str = "tokens", **changes: object) -> TokenFile:
        settings = {"vocab_size": 300, "end_of_document": 0, "tokenizer_fingerprint": "f" * 64, "source": "a test"}
        encoded = (Encoded(np.array(ids, dtype=np.uint32), len(ids)) for ids in documents)
        return write_token_file(tmp_path / name, encoded, **{**settings, **changes})  # type: ignore[arg-type]

    return write
