"""The recipe's `data` section of kind `prepared`: shards of tokens that `dla-train prepare` made."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Windows over memory-mapped shards of tokens.

    Attributes:
        path: the folder that `dla-train prepare --out` made.
        vocab_size: ids that the model has for the tokens; at least as many as the tokenizer's.
        window: tokens that the model sees at once.
        documents: `joined` reads all documents in a row, with end-of-document tokens between them, as the paper does;
            `separate` lets nothing cross from one document into the next: no convolution, slot, score or attention.
        tokenizer: path of a `tokenizer.json` that must be the one that made the tokens; null does not ask.
        verify: compare all checksums at the start (about 3 s per GB); false checks sizes only.
        workers: processes that read ahead; 0 reads in the training process. The order is the same for any number.
    """

    kind: Literal["prepared"] = "prepared"
    path: str
    vocab_size: int
    window: int
    documents: Literal["joined", "separate"] = "joined"
    tokenizer: str | None = None
    verify: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("window", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
