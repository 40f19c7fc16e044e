"""From what a user writes to readers: a file, a directory, a pattern, or a data set of the Hugging Face hub."""

import glob
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.prepared_folders import PreparedFolders
from dla_data.readers.files import files_below, files_matching, is_data_file, is_there
from dla_data.readers.hub import HubName
from dla_data.readers.hugging_face import hugging_face_readers
from dla_data.readers.json_lines import JsonLinesReader
from dla_data.readers.kinds import kind_of, said_of_files
from dla_data.readers.parquet import ParquetReader
from dla_data.readers.plain_text import PlainTextReader
from dla_data.readers.reader import DocumentReader
from dla_data.text_files import TEXT_SUFFIXES

_LOGGER = logging.getLogger("dla_data")

HUGGING_FACE_PREFIX = "hf:"
_JSON_LINES = (".jsonl", ".ndjson", ".json")
# Files in folders of data sets that describe the data and hold none.
_ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from.

    path: one of
        - a file: `.jsonl`, `.ndjson` or `.json` (an object per line), any of them with `.gz` or `.zst`; `.parquet`; any
          other name is plain text, one document, with `.gz` or `.zst` too;
        - a directory: all files below it of these kinds, sorted by path, links followed, without prepared folders; of
          plain text those that end in `TEXT_SUFFIXES`, but beside JSON lines or Parquet only `.txt`, because the
          others are then about the data (a card, a script) and none of it;
        - a pattern such as `pretrain/arxiv*.jsonl.zst`, sorted;
        - a data set of the hub, `owner/name`, where no such path exists; `owner/name@revision` is a commit, tag or
          branch of it;
        - `hf:` and a hub name, or a folder to be read as `datasets` reads it (configurations, splits).
    text_field: the field or column with the text.
    config, split: of a Hugging Face data set; None takes its default and "train". Files have neither.
    """

    path: str
    text_field: str = "text"
    config: str | None = None
    split: str | None = None

    def readers(self, out: Path | None = None) -> list[DocumentReader]:
        """The readers of all files or shards, always in the same order; opens no local file yet.

        Args:
            out: a folder that is being prepared. Directories and patterns leave out what lies in it, as in any prepared
                folder.

        Raises:
            DataError: nothing there, nothing of a known kind, a directory that cannot be listed, or a data set that
                cannot be opened.
        """
        if not self.path:
            raise DataError("a source has no name: its path is an empty text. Leave it out, or say where the text is.")
        hub = self.hub
        if hub is not None and hub.revision is not None and os.path.isdir(hub.name):
            raise DataError(
                f"{hub.name} is a folder here, and a folder has no revision {hub.revision!r}. To read it, leave out "
                f"@{hub.revision}; to read the data set of the hub, start where there is no such folder."
            )
        if hub is not None or self.path.startswith(HUGGING_FACE_PREFIX):
            at = hub or self.path.removeprefix(HUGGING_FACE_PREFIX)
            return hugging_face_readers(at, self.config, self.split or "train", self.text_field)
        for what, value in (("configuration", self.config), ("split", self.split)):
            if value is not None:
                raise DataError(
                    f"{self.path} is read as files, which have no {what} {value!r}. "
                    f"To read a folder as a data set, write {HUGGING_FACE_PREFIX}{self.path}."
                )
        return [self._reader(path) for path in self._files(PreparedFolders(out))]

    @property
    def hub(self) -> HubName | None:
        """The data set of the hub that is meant, with the revision as it was written; None for files and folders."""
        is_prefixed, name = self.path.startswith(HUGGING_FACE_PREFIX), self.path.removeprefix(HUGGING_FACE_PREFIX)
        if os.path.isdir(name) if is_prefixed else os.path.exists(name):
            return None
        hub = HubName.parse(name)
        return hub if hub is not None and (is_prefixed or "/" in hub.name) else None

    def at(self, commit: str | None) -> "Source":
        """The same data set of the hub at one commit (None: as it is); for files and folders the same source."""
        if commit is None or self.hub is None:
            return self
        return replace(self, path=f"{HUGGING_FACE_PREFIX}{self.hub._replace(revision=commit)}")

    def _files(self, prepared: PreparedFolders) -> list[Path]:
        root = Path(self.path)
        if is_there(root):
            return self._files_below(root, prepared) if root.is_dir() else [root]
        if glob.has_magic(self.path):
            matches = [path for path in files_matching(self.path) if is_data_file(path) and not prepared.hold(path)]
            if not matches:
                raise DataError(f"no file matches {self.path}. Check the pattern.")
            return matches
        raise DataError(f"no source at {self.path}: no such file or directory, and no hub name (owner/name).")

    def _files_below(self, root: Path, prepared: PreparedFolders) -> list[Path]:
        found = files_below(root)
        if not found and not any(root.iterdir()):
            raise DataError(f"the directory {root} is empty. Check the path.")
        found = [path for path in found if not prepared.hold(path)]
        text = (".txt",) if any(_has_rows(path) for path in found) else TEXT_SUFFIXES
        chosen = [path for path in found if (_has_rows(path) or kind_of(path) in text) and is_data_file(path)]
        if not chosen:
            raise DataError(
                f"no data in {root}: of its {counted(len(found), 'file')} none ends in .jsonl, .ndjson, .json, "
                f".parquet, {', '.join(TEXT_SUFFIXES[:-1])} or {TEXT_SUFFIXES[-1]} (with .gz or .zst or without), "
                "prepared folders left out. Give others one by one, or by a pattern."
            )
        read = set(chosen)
        others = [path for path in found if path not in read]
        if said := said_of_files(
            *([path.relative_to(root).as_posix() for path in paths] for paths in (chosen, others))
        ):
            _LOGGER.info("%s: %s", root, said)
        return chosen

    def _reader(self, path: Path) -> DocumentReader:
        kind = kind_of(path)
        if kind == ".parquet":
            return ParquetReader(path, self.text_field)
        return JsonLinesReader(path, self.text_field) if kind in _JSON_LINES else PlainTextReader(path)


def _has_rows(path: Path) -> bool:
    """Whether many documents are to be expected in the file, one a row or line."""
    return path.suffix == ".parquet" or (kind_of(path) in _JSON_LINES and path.name not in _ABOUT)
