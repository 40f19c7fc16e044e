"""Data sets of the Hugging Face hub, or folders laid out like one, read as streams through `datasets`.

Only the builders that read tables and text are let through. Others may unpickle what they read or decode pictures, and
none may bring code of its own.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from dla_data.errors import DataError
from dla_data.readers.hub import HubName, Place, located
from dla_data.readers.reader import START, DocumentReader, Position, ReadingLog, RowProblem, text_of
from dla_data.readers.version import DataSetVersion

_ALLOWED_BUILDERS = ("json", "parquet", "arrow", "csv", "text")


class HuggingFaceReader(DocumentReader):
    """One shard (usually a file) of one split of a data set.

    A restart reads the rows before its position again, but does not tokenize them.

    Args:
        name: for messages. rows: `datasets.IterableDataset`.
        text_field: the field with the text. version: of the data set.
    """

    def __init__(self, name: str, rows: Any, text_field: str, version: DataSetVersion) -> None:
        self.name = name
        self.size = None
        self.version = version
        self._rows = rows
        self._text_field = text_field

    def documents(
        self, start: Position = START, log: ReadingLog | None = None, end: Position | None = None
    ) -> Iterator[tuple[Position, str]]:
        """See `DocumentReader`; messages count rows from 0."""
        log = log or ReadingLog()
        ordinal, row, _ = start
        # Not iter(rows): in DataLoader workers, that gives the shard to one worker and nothing to the others.
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
    at: HubName | str, config: str | None = None, split: str = "train", text_field: str = "text"
) -> list[DocumentReader]:
    """A reader for each shard of `split`, in the order of `datasets`; all have the `version` that is read.

    Args:
        at: a data set of the hub, or a folder laid out like one. Of the hub, one commit is read from beginning to end,
            even if its branches move meanwhile.
        config: which of the data set's configurations; None takes its default. split, text_field: what to read.
    Raises:
        DataError: no such data set, revision, configuration or split, no network, or a data set that is not text in
            tables.
    """
    import datasets  # seconds; only here is it needed

    shown = _shown(at, config)
    try:
        place = located(at) if isinstance(at, HubName) else _place(at)
        builder = datasets.load_dataset_builder(place.path, config, revision=None if place.is_folder else place.commit)
    except Exception as error:  # its own errors, the network's, and ValueError for a wrong configuration
        raise DataError(
            f"cannot open the {_shown(at, config, revision=True)}: {_reason(error)}. {_way_out(at)}"
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
    version = DataSetVersion(revision=place.commit, files=_files(builder, split, place))
    return [
        HuggingFaceReader(
            f"{shown}, split {split}, shard {index} of {count}",
            rows.shard(num_shards=count, index=index),
            text_field,
            version,
        )
        for index in range(count)
    ]


def _shown(at: HubName | str, config: str | None, revision: bool = False) -> str:
    """What messages call the data set. Names of shards leave out the revision, so that a new one keeps the names."""
    name = at.name if isinstance(at, HubName) and not revision else str(at)
    return f"data set {name}" + (f" ({config})" if config else "")


def _place(at: str) -> Place:
    # A folder by its whole path: `text` alone would be one of the builders. Anything else is left to `datasets`.
    is_folder = os.path.isdir(at)
    return Place(os.path.abspath(at) if is_folder else at, None, is_folder)


def _way_out(at: HubName | str) -> str:
    if isinstance(at, str):
        return "Check its path and configuration."
    return (
        "Check its name, revision and configuration, and whether the hub can be reached; with HF_HUB_OFFLINE set, only "
        f"what `hf download {at.name} --repo-type dataset` has put into the hub's cache is read. If a file or "
        f"folder is meant: there is no {at.name} here."
    )


def _files(builder: Any, split: str, place: Place) -> str:
    """The value of `DataSetVersion.files`."""
    here = os.path.realpath(place.path) if place.is_folder else f"hf://datasets/{place.path}@{place.commit}"
    files = [
        (file.replace(f"{here}/", ""), _size(file) if place.commit is None else None)
        for file in (builder.config.data_files or {}).get(split, ())
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _size(file: str) -> int | None:
    """Bytes of a local file, or of the archive that contains it; None for a file elsewhere."""
    path = file.rpartition("::")[2]
    return os.path.getsize(path) if os.path.isfile(path) else None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
