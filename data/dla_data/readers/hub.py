"""Data sets of the Hugging Face hub by name and revision, and the commit that a revision stands for."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

_LOGGER = logging.getLogger("dla_data")

_WORD = r"[A-Za-z0-9][\w.-]*"
_HUB_NAME = re.compile(rf"(?P<name>({_WORD}/)?{_WORD})(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 100.0  # seconds, as `datasets` waits for the same answer


class HubName(NamedTuple):
    """A data set of the hub as a user writes it.

    name: `owner/name`, or one of the old names without an owner.
    revision: a commit, tag or branch; None takes the newest commit of the main branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Read `owner/name` or `owner/name@revision`; None if it is neither."""
        match = _HUB_NAME.fullmatch(text)
        return cls(match["name"], match["revision"]) if match else None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


class Place(NamedTuple):
    """Where `datasets` finds a data set.

    path: its name on the hub, or a folder. commit: 40 hex digits; None for a folder that nobody knows the commit of.
    is_folder: whether `path` is one, such as a copy in the hub's cache.
    """

    path: str
    commit: str | None
    is_folder: bool


def located(hub: HubName) -> Place:
    """The commit that `hub` stands for now: on the hub, or with HF_HUB_OFFLINE among what was downloaded.

    Raises:
        OSError, ValueError: the libraries' own errors: no such data set or revision, not downloaded, no network.
    """
    import datasets.config
    import huggingface_hub

    if datasets.config.HF_HUB_OFFLINE:
        folder = _downloaded(hub)
        return Place(folder, Path(folder).name, True)
    commit = hub.revision
    if commit is None or not _COMMIT.fullmatch(commit):
        commit = huggingface_hub.HfApi().dataset_info(hub.name, revision=hub.revision, timeout=_TIMEOUT).sha
    if commit is None:
        raise ValueError("the hub does not say which commit that is")
    return Place(hub.name, commit, False)


def _downloaded(hub: HubName) -> str:
    """The folder of a commit in the hub's cache, which need not hold the whole data set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(hub.name, repo_type="dataset", revision=hub.revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", None)  # set if the commit was downloaded in part
        if folder is None:
            raise
        _LOGGER.warning("%s: the hub's cache has only a part of commit %s, which is read", hub, Path(folder).name)
        return folder
