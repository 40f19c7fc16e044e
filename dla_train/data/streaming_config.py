"""The recipe's `data` section of kind `streaming`: text tokenized while training, from one source or several."""

import re
from dataclasses import dataclass
from typing import Literal

from dla_train.config.limits import LONGEST_WINDOW, MOST_PROCESSES, MOST_WINDOWS, require_at_most
from dla_train.data.curriculum import CurriculumConfig


@dataclass(frozen=True, kw_only=True)
class StreamedSourceConfig:
    """Where the documents of a source come from, and how they are used.

    Attributes:
        path: a file (`.jsonl`, `.json`, `.ndjson`, `.txt`, each also with `.gz` or `.zst`, or `.parquet`), a directory
            of such files, a pattern such as `pretrain/*.jsonl.zst`, a data set of the Hugging Face hub (`owner/name`,
            or `owner/name@revision` with a commit, tag or branch), or `hf:` and a folder to be read as a data set. A
            run that continues reads the commit that it began with.
        text_field: the field or column with the text.
        config, split: of a data set; null takes its default configuration and the split `train`. Not for files.
        weight: its share of the training tokens, relative to the other sources' weights.
        at_end: `repeat` begins again, in another order of the files; `stop` ends the run with an error.
        skip_bad: how many bad rows (empty, malformed, without the field) may be left out each time a stream reads a
            file, or its part of a large one.
    """

    path: str
    text_field: str = "text"
    config: str | None = None
    split: str | None = None
    weight: float = 1.0
    at_end: Literal["repeat", "stop"] = "repeat"
    skip_bad: int = 0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight is {self.weight}; it must be above 0")
        if self.skip_bad < 0:
            raise ValueError(f"skip_bad is {self.skip_bad}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class StreamingData:
    """Text tokenized on the fly, with nothing written to disk first.

    Attributes:
        sources: by a name of your choice, which the metrics use.
        tokenizer: path of a `tokenizer.json` with the token `<|endoftext|>`.
        vocab_size: number of token ids that the model has; at least as many as the tokenizer's.
        window: tokens that the model sees at once.
        streams: number of sequences that the text is dealt out to; a multiple of ranks (or groups of them that
            share windows) x workers. Another number gives another order of the windows.
        held_out: the share of documents, chosen by their text, that is kept for validation and never trained on; 0
            keeps none, for runs without validation.
        workers: processes per rank that read and tokenize ahead; 0 does it in the training process. The order is the
            same for any number.
        curriculum: shorter windows in the first phases of training, with more of them, so that a step keeps its tokens.
    """

    kind: Literal["streaming"] = "streaming"
    sources: dict[str, StreamedSourceConfig]
    tokenizer: str
    vocab_size: int
    window: int
    streams: int = 64
    held_out: float = 0.005
    workers: int = 0
    curriculum: CurriculumConfig | None = None

    def __post_init__(self) -> None:
        for name in self.sources:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"sources has the name {name!r}; use letters, digits, _ and -")
        for name in ("vocab_size", "window", "streams"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        require_at_most("streams", self.streams, MOST_WINDOWS)
        require_at_most("window", self.window, LONGEST_WINDOW)
        require_at_most("workers", self.workers, MOST_PROCESSES)
        if self.curriculum is not None:
            self.curriculum.check(self.window)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be at least 0 and below 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")
        if self.streams % max(self.workers, 1):
            raise ValueError(
                f"streams is {self.streams}, not a multiple of {self.workers} workers; each worker reads its own"
            )
