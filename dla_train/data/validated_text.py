"""Whether a mixture of prepared folders trains on documents that it validates.

Each folder holds out the documents whose text has a hash below its `--validation-share`. So of two folders that were
prepared from the same text, the one with the smaller share trains on documents that the other one holds out.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from dla_data.counted import counted
from dla_data.shards.prepared import PreparedTokens


def validated_and_trained_on(folders: Mapping[str, PreparedTokens]) -> Iterator[str]:
    """Sentences for the user about sources of a mixture, as far as the folders know what they were prepared from.

    Args:
        folders: by the names of their sources.
    """
    for trained, validated in permutations(folders, 2):
        small, large = (folders[name].manifest.request["validation_share"] for name in (trained, validated))
        files = _same_files(folders[trained], folders[validated])
        if small < large and files:
            more = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
            yield (
                f"data.sources.{trained} trains on documents that data.sources.{validated} validates: both were "
                f"prepared from {files[0]}{more}, with --validation-share {small:g} and {large:g}. The validation loss "
                "is lower than for unseen text. Prepare both with the same share."
            )


def _same_files(one: PreparedTokens, other: PreparedTokens) -> list[str]:
    """The files that both were made of: of the same name and size, or, if they lie elsewhere now, last name, size and
    time."""
    known = {identity for file in other.manifest.request["files"] for identity in _identities(file)}
    return [file["name"] for file in one.manifest.request["files"] if known & _identities(file)]


def _identities(file: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    name, size, time = file["name"], file["bytes"], file["modified_ns"]
    return {(name, size), *([] if time is None else [(os.path.basename(name), size, time)])}
