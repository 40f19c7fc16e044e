"""Files as the shards of streams: cut into ranges that together are the file, entered at any document."""

import gzip
import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest

from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.readers import Source
from dla_data.streams.held_out import held_out_windows
from dla_data.streams.parts import StreamParts
from dla_data.streams.reader_text import ReaderText
from dla_data.tokenizer import train_tokenizer

TEXTS = [f"document {number} " + "word " * (number * 37 % 90) for number in range(500)]


def _jsonl(texts):
    return "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in texts)


@pytest.fixture(params=["jsonl", "gz", "parquet", "many"])
def text(request, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    if request.param == "jsonl":
        (root / "a.jsonl").write_text(_jsonl(TEXTS[:450]))
        (root / "b.jsonl").write_text(_jsonl(TEXTS[450:]).rstrip("\n"))
    elif request.param == "gz":
        (root / "a.jsonl.gz").write_bytes(gzip.compress(_jsonl(TEXTS).encode()))
    elif request.param == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), root / "a.parquet", row_group_size=20)
    else:
        for number in range(100):
            (root / f"{number:03}.jsonl").write_text(_jsonl(TEXTS[5 * number : 5 * number + 5]))
    return ReaderText("corpus", Source(path=str(root)).readers(), streams=8)


def test_the_shards_together_are_the_text_in_order(text):
    everything = [one for shard in range(text.shards) for _, one in text.documents(shard, None)]
    assert everything == TEXTS


def test_every_document_can_be_entered(text):
    for shard in range(0, text.shards, 7):
        documents = list(text.documents(shard, None))
        for at in range(0, len(documents), 3):
            position = json.loads(json.dumps(documents[at][0]))
            assert list(itertools.islice(text.documents(shard, position), 3)) == documents[at : at + 3]


def test_no_stream_reads_what_belongs_to_another_where_the_format_can_be_entered(tmp_path, text):
    cut = StreamParts(text.shards, 8, seed=0).cut
    if text.files == 1 and text.shards == 1:
        assert cut == 8, "gzip is one range: every stream takes each eighth document"
    else:
        assert cut <= 2


def test_what_validation_reads_does_not_depend_on_the_streams(tmp_path):
    (tmp_path / "a.jsonl").write_text(_jsonl(TEXTS))
    tokenizer, held_out = train_tokenizer(TEXTS, 300), HeldOut(0.5)
    found = []
    for streams in (1, 4, 16):
        text = ReaderText("a", Source(path=str(tmp_path)).readers(), streams)
        windows = held_out_windows([text.uncut()], [1], tokenizer, held_out, window=30, count=6)
        found.append([window.tolist() for window in windows])
        assert text.shards > text.uncut().shards == 1
    assert found[0] == found[1] == found[2]
    first = next(one for one in TEXTS if held_out(one))
    assert tokenizer.decode(found[0][0]).startswith(first[:20]), "from the beginning of the file"


def test_a_bad_line_within_a_range_is_named_so_that_it_can_be_found(tmp_path):
    lines = _jsonl(TEXTS).splitlines(keepends=True)
    lines[400] = "not json\n"
    (tmp_path / "a.jsonl").write_text("".join(lines))
    text = ReaderText("corpus", Source(path=str(tmp_path)).readers(), streams=2)
    assert text.shards == 16
    with pytest.raises(
        DataError, match=r"a\.jsonl, line (\d+): it is not JSON .* \(Lines are counted from byte"
    ) as info:
        [list(text.documents(shard, None)) for shard in range(text.shards)]
    line = int(str(info.value).split("line ")[1].split(":")[0])
    begin = int(str(info.value).split("from byte ")[1].split(" ")[0].replace(",", ""))
    assert (tmp_path / "a.jsonl").read_bytes()[begin:].splitlines()[line - 1] == b"not json"


def test_bad_rows_may_be_left_out_and_are_told(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text(_jsonl(["one", " ", "two"]))
    text = ReaderText("corpus", Source(path=str(tmp_path)).readers(), streams=1, skip_bad=1)
    assert [one for shard in range(text.shards) for _, one in text.documents(shard, None)] == ["one", "two"]
    assert "is an empty document" in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_bad_rows_count_in_the_part_that_they_belong_to(tmp_path, caplog, name):
    """A part of a file used to end with the first good row of the next one, and so it had that one's bad rows, too."""
    texts = [" " if number % 25 == 0 else f"document {number:03}" for number in range(400)]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps({"text": f"{text:12}"}) + "\n" for text in texts))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / name, row_group_size=25)
    text = ReaderText("corpus", Source(path=str(tmp_path)).readers(), streams=2, skip_bad=1)
    assert text.shards == 16, "one bad row each, which is the first"
    found = [one.strip() for shard in range(text.shards) for _, one in text.documents(shard, None)]
    assert found == [one for one in texts if one != " "]
    assert caplog.text.count("is an empty document") == 16


def test_another_text_has_another_fingerprint(tmp_path):
    prints = []
    for number, texts in enumerate([TEXTS, TEXTS, TEXTS[:-1]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.jsonl").write_text(_jsonl(texts))
        prints.append(ReaderText("c", Source(path=str(folder)).readers(), 4).fingerprint())
    assert prints[0] == prints[1] != prints[2]
