"""The recipe's `data` section of kind `prepared`: shards of tokens that `dla-train prepare` made."""

import re
from dataclasses import dataclass
from typing import Literal

from dla_train.config.limits import LONGEST_WINDOW, MOST_PROCESSES, require_at_most
from dla_train.data.curriculum import CurriculumConfig


@dataclass(frozen=True, kw_only=True)
class PreparedSourceConfig:
    """One of several folders that are mixed.

    Attributes:
        path: the folder that `dla-train prepare --out` made; all folders must have the same tokenizer.
        weight: its share of the training tokens, relative to the other sources' weights.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight is {self.weight}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Windows over memory-mapped shards of tokens.

    Attributes:
        path: the folder that `dla-train prepare --out` made; null if `sources` gives several.
        sources: folders to be mixed, by names of your choice, which the metrics use; each begins again when it is used
            up.
        vocab_size: number of token ids that the model has; at least as many as the tokenizer's.
        window: tokens that the model sees at once.
        documents: `joined` reads all documents in a row, with end-of-document tokens between them, as the paper does;
            `separate` lets no convolution, slot, score or attention cross from one document into the next.
        tokenizer: path of a `tokenizer.json` that must be the one that made the tokens; null does not check.
        verify: compare all checksums at the start (about 3 s per GB, once on each node); false checks sizes only.
        workers: processes that read ahead; 0 reads in the training process. The order is the same for any number.
        curriculum: shorter windows in the first phases of training, with more of them, so that a step keeps its tokens.
    """

    kind: Literal["prepared"] = "prepared"
    path: str | None = None
    sources: dict[str, PreparedSourceConfig] | None = None
    vocab_size: int
    window: int
    documents: Literal["joined", "separate"] = "joined"
    tokenizer: str | None = None
    verify: bool = True
    workers: int = 0
    curriculum: CurriculumConfig | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.sources is None):
            given = "neither is given" if self.path is None else "both are given"
            raise ValueError(f"path is one folder and sources are several; {given}, and there must be one of the two")
        for name in self.sources or ():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"sources has the name {name!r}; use letters, digits, _ and -")
        for name, least in (("vocab_size", 1), ("window", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        require_at_most("window", self.window, LONGEST_WINDOW)
        require_at_most("workers", self.workers, MOST_PROCESSES)
        if self.curriculum is not None:
            self.curriculum.check(self.window)

    @property
    def folders(self) -> dict[str, PreparedSourceConfig]:
        """All folders by name, sorted because their order in the recipe must not matter; that of `path` is named ""."""
        if self.path is not None:
            return {"": PreparedSourceConfig(path=self.path)}
        return dict(sorted((self.sources or {}).items()))
