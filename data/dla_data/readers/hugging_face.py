"""Data sets of the Hugging Face hub, or folders laid out like one, read as streams through `datasets`.

Only the builders that read tables and text are let through. Others may unpickle what they read or decode pictures, and
none may bring code of its own.
"""

from collections.abc import Iterator
from typing import Any

from dla_data.errors import DataError
from dla_data.readers.reader import START, DocumentReader, Position, ReadingLog, RowProblem, text_of

_ALLOWED_BUILDERS = ("json", "parquet", "arrow", "csv", "text")


class HuggingFaceReader(DocumentReader):
    """One shard (usually a file) of one split of a data set.

    A restart passes over the rows before it: nothing is tokenised again, but they are read again.

    Args:
        name: for messages. rows: `datasets.IterableDataset`.
        text_field: the field with the text.
    """

    def __init__(self, name: str, rows: Any, text_field: str = "text") -> None:
        self.name = name
        self.size = None
        self._rows = rows
        self._text_field = text_field

    def documents(self, start: Position = START, log: ReadingLog | None = None) -> Iterator[tuple[Position, str]]:
        """See `DocumentReader`; messages count rows from 0."""
        log = log or ReadingLog()
        ordinal, row, _ = start
        # Not iter(rows): in a worker of a DataLoader that would leave this shard to one worker and show others nothing.
        rows = (self._rows.skip(row) if row else self._rows).iter(batch_size=1)
        while True:
            try:
                value = {field: values[0] for field, values in next(rows).items()}
            except StopIteration:
                return
            except Exception as error:  # whatever the builder of this format raises for a damaged file
                raise DataError(
                    f"{self.name}, at row {row} or later: `datasets` cannot read on ({_reason(error)}). "
                    "Look at that file, or at the network."
                ) from error
            position = Position(ordinal, row)
            row += 1
            try:
                text = text_of(value, self._text_field)
            except RowProblem as problem:
                log.note(f"{self.name}, row {position.row}", problem)
                continue
            ordinal += 1
            yield position, text


def hugging_face_readers(
    name: str, config: str | None = None, split: str = "train", text_field: str = "text"
) -> list[DocumentReader]:
    """A reader for each shard of `split`, in the order of `datasets`.

    Args:
        name: on the hub, such as `HuggingFaceFW/fineweb-edu`, or a folder laid out like a data set there.
        config: which of the data set's configurations; None takes its default. split, text_field: what to read.
    Raises:
        DataError: no such data set, configuration or split, no network, or a data set that is not text in tables.
    """
    import datasets  # seconds; only here is it needed

    shown = f"data set {name}" + (f" ({config})" if config else "")
    try:
        builder = datasets.load_dataset_builder(name, config)
    except Exception as error:  # its own errors, the network's, and ValueError for a wrong configuration
        raise DataError(
            f"cannot open the {shown}: {_reason(error)}. Check its name and configuration, and whether the hub can be "
            "reached (HF_HUB_OFFLINE must not be set); a folder on disk is given by its path."
        ) from error
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _ALLOWED_BUILDERS:
        raise DataError(
            f"the {shown} is read by the builder {kind!r}; only {', '.join(_ALLOWED_BUILDERS)} are let through. "
            "Export its text to Parquet or JSON lines."
        )
    try:
        rows = builder.as_streaming_dataset(split=split)
    except Exception as error:
        raise DataError(f"cannot read the split {split!r} of the {shown}: {_reason(error)}.") from error
    assert isinstance(rows, datasets.IterableDataset)  # one split was asked for
    count = rows.num_shards
    return [
        HuggingFaceReader(
            f"{shown}, split {split}, shard {index} of {count}", rows.shard(num_shards=count, index=index), text_field
        )
        for index in range(count)
    ]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
