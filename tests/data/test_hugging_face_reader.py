"""Folders laid out like data sets of the hub, read as streams through `datasets`."""

import json
from pathlib import Path

import pytest

from dla_data.errors import DataError
from dla_data.readers import Position, ReadingLog, Source

README = """\
---
configs:
- config_name: default
  data_files: data/*.jsonl
- config_name: sample
  data_files:
  - {split: train, path: sample/*.jsonl}
  - {split: test, path: sample/test/*.jsonl}
---
"""


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Three files in the default configuration, one per split in `sample`."""
    root = tmp_path / "owner" / "set"
    for name, texts in {
        "data/0.jsonl": ["a", "b", "c"],
        "data/1.jsonl": ["d", " ", "e"],
        "sample/0.jsonl": ["s"],
        "sample/test/0.jsonl": ["t"],
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(json.dumps({"text": text, "score": 1}) + "\n" for text in texts))
    (root / "README.md").write_text(README)
    return root


def test_a_reader_per_shard_that_restarts(data_set: Path) -> None:
    readers = Source(path=f"hf:{data_set}").readers()
    log = ReadingLog(skip_bad=1)
    found = [list(reader.documents(log=log)) for reader in readers]
    assert [[text for _, text in shard] for shard in found] == [["a", "b", "c"], ["d", "e"]]
    assert [row.reason for row in log.skipped] == ["field 'text' is an empty document"]
    assert "shard 1 of 2, row 1" in log.skipped[0].place
    assert found[1][1][0] == Position(ordinal=1, row=2)
    for shard, reader in zip(found, readers, strict=True):
        for at in range(len(shard)):
            assert list(reader.documents(shard[at][0], ReadingLog(skip_bad=1))) == shard[at:]


def test_configurations_and_splits(data_set: Path) -> None:
    for split, expected in (("train", "s"), ("test", "t")):
        [reader] = Source(path=f"hf:{data_set}", config="sample", split=split).readers()
        assert [text for _, text in reader.documents()] == [expected]


def test_what_cannot_be_opened_is_one_sentence(data_set: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot open the data set .*\(other\)"):
        Source(path=f"hf:{data_set}", config="other").readers()
    with pytest.raises(DataError, match=r"cannot read the split 'valid' of the data set"):
        Source(path=f"hf:{data_set}", split="valid").readers()
    with pytest.raises(DataError, match=r"cannot open the data set nobody/nothing.*whether the hub can be reached"):
        Source(path="nobody/nothing").readers()
    [reader, _] = Source(path=f"hf:{data_set}", text_field="content").readers()
    with pytest.raises(DataError, match=r"row 0: it has no field 'content'\. Fields present: 'text', 'score'"):
        list(reader.documents())


def test_a_damaged_file_names_the_shard(data_set: Path) -> None:
    (data_set / "data" / "1.jsonl").write_text('{"text": "fine"}\n{"text": broken\n')
    readers = Source(path=f"hf:{data_set}").readers()
    with pytest.raises(DataError, match=r"shard 1 of 2, at row 0 or later: `datasets` cannot read on"):
        list(readers[1].documents())


def test_nothing_that_unpickles_or_runs_code_is_let_through(data_set: Path, tmp_path: Path) -> None:
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "train.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"is read by the builder 'pandas'|cannot open the data set"):
        Source(path=f"hf:{pickles}").readers()
    marker = tmp_path / "executed"
    script = tmp_path / "scripted"
    script.mkdir()
    (script / "scripted.py").write_text(f"open({str(marker)!r}, 'w').close()")
    with pytest.raises(DataError, match="cannot open the data set"):
        Source(path=f"hf:{script}").readers()
    assert not marker.exists()
