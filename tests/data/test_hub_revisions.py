"""Data sets of the hub by revision, read by `datasets` from a hub on this machine and from the hub's cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from dla_data.errors import DataError
from dla_data.readers import DataSetVersion, DocumentReader, Source
from dla_data.readers.hub import HubName
from tests.data.local_hub import LocalHub, offline, served

NAME = "owner/set"
README = """\
---
configs:
- config_name: default
  data_files: [{split: train, path: data/*}]
---
"""


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(readers: list[DocumentReader]) -> list[str]:
    return [text for reader in readers for _, text in reader.documents()]


def version(readers: list[DocumentReader]) -> DataSetVersion:
    found = {reader.version for reader in readers}
    assert len(found) == 1
    [only] = found
    assert only is not None
    return only


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with served(hub := LocalHub(), tmp_path / "hugging face"):
        yield hub


def test_a_revision_is_a_commit_a_tag_or_a_branch(hub: LocalHub) -> None:
    old = hub.commit(NAME, {"README.md": README, "data/0.jsonl": lines("old")}, "v1", "refs/pr/1")
    new = hub.commit(NAME, {"README.md": README, "data/0.jsonl": lines("new")})
    for written, text, commit in (
        (NAME, "new", new),
        (f"{NAME}@main", "new", new),
        (f"hf:{NAME}@v1", "old", old),
        (f"{NAME}@refs/pr/1", "old", old),
        (f"{NAME}@{old}", "old", old),
    ):
        readers = Source(path=written).readers()
        assert (texts(readers), version(readers).revision) == ([text], commit), written
        assert readers[0].name == "data set owner/set, split train, shard 0 of 1"  # validation is chosen by it


def test_what_is_open_stays_at_its_commit(hub: LocalHub) -> None:
    before = hub.commit(NAME, {"data/0.jsonl": lines("a"), "data/1.jsonl": lines("b")})
    readers = Source(path=NAME).readers()
    hub.commit(NAME, {"data/0.jsonl": lines("changed"), "data/1.jsonl": lines("b")})
    assert texts(readers) == ["a", "b"]
    assert texts(Source(path=NAME).readers()) == ["changed", "b"]
    assert texts(Source(path=NAME).at(before).readers()) == ["a", "b"]
    assert texts(Source(path=f"{NAME}@main").at(before).readers()) == ["a", "b"]
    # Of a branch `datasets` would ask the data viewer, whose answers change, what the columns are.
    assert not [address for address in hub.asked if "/resolve/main/" in address]


def test_shards_come_by_name_whatever_order_the_hub_lists_them_in(hub: LocalHub) -> None:
    names = ["data/train-2.jsonl", "data/train-0.jsonl", "data/train-10.jsonl", "data/train-1.jsonl"]
    hub.commit(NAME, {name: lines(name) for name in names})
    assert texts(Source(path=NAME).readers()) == sorted(names)


def test_without_the_hub_the_cache_has_the_same_version(hub: LocalHub) -> None:
    files = {"README.md": README, "data/0.jsonl": lines("a"), "data/1.jsonl": lines("b"), "other/0.jsonl": lines("c")}
    first = hub.commit(NAME, files, "v1")
    huggingface_hub.snapshot_download(NAME, repo_type="dataset", revision="v1")
    hub.commit(NAME, {**files, "data/1.jsonl": lines("B")})
    huggingface_hub.snapshot_download(NAME, repo_type="dataset")
    there = {written: version(Source(path=written).readers()) for written in (NAME, f"{NAME}@v1")}
    assert there[f"{NAME}@v1"].revision == first
    assert there[NAME] != there[f"{NAME}@v1"]
    with offline():
        asked = len(hub.asked)
        for written, text in ((NAME, ["a", "B"]), (f"{NAME}@v1", ["a", "b"])):
            readers = Source(path=written).readers()
            assert (texts(readers), version(readers)) == (text, there[written])
            assert readers[1].name == "data set owner/set, split train, shard 1 of 2"
        assert texts(Source(path=NAME).at(first).readers()) == ["a", "b"]
        with pytest.raises(DataError, match=r"data set owner/set@v2:.*`hf download owner/set --repo-type dataset`"):
            Source(path=f"{NAME}@v2").readers()
        assert len(hub.asked) == asked


def test_a_part_of_a_commit_is_read_and_is_another_version(hub: LocalHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.commit(NAME, {"README.md": README, "data/0.jsonl": lines("a"), "data/1.jsonl": lines("b")})
    whole = version(Source(path=NAME).readers())
    huggingface_hub.snapshot_download(NAME, repo_type="dataset", allow_patterns=["README.md", "data/0*"])
    with offline():
        readers = Source(path=NAME).readers()
    assert texts(readers) == ["a"]
    if hasattr(huggingface_hub.errors, "IncompleteSnapshotError"):  # older versions do not know
        assert f"owner/set: the hub's cache has only a part of commit {whole.revision}" in caplog.text
    part = version(readers)
    assert part.revision == whole.revision
    assert part.files != whole.files


@pytest.mark.parametrize("readme", [README, ""])
def test_a_folder_is_known_by_its_files(readme: str, tmp_path: Path) -> None:
    folder = tmp_path / "here" / "set"
    for name in ("data/1.jsonl", "data/0.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines("some", "text"))
    if readme:
        (folder / "README.md").write_text(readme)
    seen = [version(Source(path=f"hf:{folder}").readers())]
    assert seen[0].revision is None
    assert version(Source(path=f"hf:{folder}").at("0" * 40).readers()) == seen[0]
    folder.rename(tmp_path / "set")
    folder = tmp_path / "set"
    assert version(Source(path=f"hf:{folder}").readers()) == seen[0]
    (folder / "data" / "0.jsonl").write_text(lines("another", "text"))
    seen.append(version(Source(path=f"hf:{folder}").readers()))
    (folder / "data" / "0.jsonl").rename(folder / "data" / "2.jsonl")
    seen.append(version(Source(path=f"hf:{folder}").readers()))
    assert len(set(seen)) == 3


def test_a_folder_called_like_a_builder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "0.jsonl").write_text(lines("a"))
    monkeypatch.chdir(tmp_path)
    assert texts(Source(path="hf:json").readers()) == ["a"]


def test_what_cannot_be_opened_names_the_revision(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(NAME, {"data/0.jsonl": lines("a")})
    for written in (f"{NAME}@v9", f"{NAME}@{'9' * 40}", "owner/none"):
        with pytest.raises(DataError, match=f"cannot open the data set {written}: .*Check its name, revision"):
            Source(path=written).readers()
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    with pytest.raises(DataError, match=r"owner/set is a folder here, and a folder has no revision 'v1'"):
        Source(path=f"{NAME}@v1").readers()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("owner/set", HubName("owner/set")),
        ("owner/set@v1.0", HubName("owner/set", "v1.0")),
        ("set@refs/convert/parquet", HubName("set", "refs/convert/parquet")),
        ("owner/set@", None),
        ("owner/set@a b", None),
        ("owner/set/more", None),
        ("/owner/set", None),
    ],
)
def test_names(written: str, read: HubName | None) -> None:
    assert HubName.parse(written) == read
    assert read is None or str(read) == written
