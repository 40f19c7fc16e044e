"""The recipe's `data` section: which text, how it becomes tokens, how it is read."""

from dataclasses import dataclass
from typing import Literal

from dla_data.text_files import TEXT_SUFFIXES
from dla_train.config.limits import LONGEST_WINDOW, MOST_PROCESSES, require_at_most
from dla_train.data.prepared_config import PreparedData
from dla_train.data.streaming_config import StreamingData
from dla_train.data.synthetic_config import SyntheticData


@dataclass(frozen=True, kw_only=True)
class StdlibData:
    """The source of the running Python's standard library: real text with nothing to download.

    Attributes:
        vocab_size: entries of the byte-level BPE tokenizer that is trained on the text.
        window: tokens that the model sees at once.
        workers: processes that read ahead; 0 reads in the training process. The order is the same for any number.
    """

    kind: Literal["stdlib"] = "stdlib"
    vocab_size: int
    window: int
    workers: int = 0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class TextData:
    """A text file, or a directory of text files, in UTF-8.

    Attributes:
        path: the file (one document) or directory (each file one document).
        suffixes: which files of a directory are read.
        vocab_size: entries of the byte-level BPE tokenizer that is trained on the text.
        window: tokens that the model sees at once.
        workers: processes that read ahead; 0 reads in the training process. The order is the same for any number.
    """

    kind: Literal["text"] = "text"
    path: str
    suffixes: tuple[str, ...] = TEXT_SUFFIXES
    vocab_size: int
    window: int
    workers: int = 0

    def __post_init__(self) -> None:
        _check(self)
        for suffix in self.suffixes:
            if not suffix.startswith("."):
                raise ValueError(f"suffixes holds {suffix!r}; each must begin with a dot: '.{suffix}'")


DataConfig = StdlibData | TextData | PreparedData | StreamingData | SyntheticData


def _check(config: StdlibData | TextData) -> None:
    if config.window < 1:
        raise ValueError(f"window is {config.window}; it must be at least 1 token")
    if config.vocab_size < 257:
        raise ValueError(
            f"vocab_size is {config.vocab_size}; it must be at least 257: one entry per byte, one to end a document"
        )
    if config.workers < 0:
        raise ValueError(f"workers is {config.workers}; it must be at least 0")
    require_at_most("window", config.window, LONGEST_WINDOW)
    require_at_most("workers", config.workers, MOST_PROCESSES)
