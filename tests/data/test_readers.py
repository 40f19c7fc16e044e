"""Documents out of every format, from the beginning and from any position, and what bad input says."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dla_data.errors import DataError
from dla_data.readers import START, DocumentReader, Position, ReadingLog, Source

TEXTS = [f"document {number}: größe 深\nsecond line {'x' * (number * 37 % 500)}" for number in range(150)]


def json_lines(texts: list[str], field: str = "text") -> bytes:
    rows = [json.dumps({"id": number, field: text}, ensure_ascii=False) for number, text in enumerate(texts)]
    return "".join(f"{row}\n" for row in rows).encode()


def zstd_frames(content: bytes) -> bytes:
    """Two frames, as `pzstd` and `cat a.zst b.zst` make them."""
    half = content.index(b"\n", len(content) // 2) - 3  # a line goes across
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:half]) + compress(content[half:])


def gzip_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:]) + b"\0" * 100


def write_parquet(path: Path, texts: list[object], field: str = "text", **options: object) -> None:
    table = pyarrow.table({"id": list(range(len(texts))), field: texts})
    pyarrow.parquet.write_table(table, path, **{"row_group_size": 40, **options})


def write_format(path: Path) -> Path:
    if path.suffix == ".parquet":
        write_parquet(path, TEXTS)  # type: ignore[arg-type]
        return path
    content = json_lines(TEXTS)
    pack: Callable[[bytes], bytes] = {".gz": gzip_members, ".zst": zstd_frames}.get(path.suffix, lambda same: same)
    path.write_bytes(pack(content))
    return path


def only_reader(path: Path, **settings: str) -> DocumentReader:
    [reader] = Source(path=str(path), **settings).readers()
    return reader


def texts_of(path: Path, log: ReadingLog | None = None, **settings: str) -> list[str]:
    return [text for _, text in only_reader(path, **settings).documents(START, log)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_format_gives_all_documents_and_restarts_anywhere(name: str, tmp_path: Path) -> None:
    path = write_format(tmp_path / name)
    log = ReadingLog()
    found = list(only_reader(path).documents(START, log))
    assert [text for _, text in found] == TEXTS
    assert [position.ordinal for position, _ in found] == list(range(len(TEXTS)))
    assert not log.skipped
    for at in (0, 1, 39, 40, 41, 75, 149):
        saved = json.loads(json.dumps(found[at][0]))
        assert list(only_reader(path).documents(Position(*saved))) == found[at:]


def test_a_restart_in_a_plain_file_seeks_and_in_parquet_skips_row_groups(tmp_path: Path) -> None:
    lines = write_format(tmp_path / "a.jsonl")
    found = list(only_reader(lines).documents())
    late = found[140][0]
    content = bytearray(lines.read_bytes())
    content[: late.offset] = b"\xff" * late.offset  # would be an error if it were looked at
    lines.write_bytes(content)
    assert next(iter(only_reader(lines).documents(late))) == found[140]

    table = tmp_path / "a.parquet"
    write_parquet(table, TEXTS, compression="none")  # type: ignore[arg-type]
    found = list(only_reader(table).documents())
    content = bytearray(table.read_bytes())
    content[4:2000] = b"\xff" * 1996  # inside the first row group
    table.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(only_reader(table).documents())
    assert list(only_reader(table).documents(found[100][0])) == found[100:]


def test_bytes_read_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        reader, log = only_reader(write_format(tmp_path / name)), ReadingLog()
        found = list(reader.documents(START, log))
        assert log.bytes_read == reader.size == (tmp_path / name).stat().st_size
        again = ReadingLog()
        list(reader.documents(found[100][0], again))
        assert again.bytes_read == reader.size


def test_lines_longer_than_a_block_and_without_a_last_line_end(tmp_path: Path) -> None:
    texts = ["a" * 700_000, "b", "c" * 300_000]
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"\n  \r\n" + json_lines(texts).rstrip(b"\n"))
    found = list(only_reader(path).documents())
    assert [text for _, text in found] == texts
    assert [position.row for position, _ in found] == [2, 3, 4]
    assert list(only_reader(path).documents(found[2][0])) == found[2:]


def test_plain_text_is_one_document_with_its_line_ends_as_they_are(tmp_path: Path) -> None:
    text = "one\r\ntwo größe\n"
    (tmp_path / "a.md").write_bytes(text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    for name in ("a.md", "a.txt.gz", "a.txt.zst"):
        assert list(only_reader(tmp_path / name).documents()) == [(START, text)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbftwo")
    assert texts_of(tmp_path / "a.txt") == ["one \ufefftwo"]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match=r"b\.txt: the file is an empty document"):
        texts_of(tmp_path / "b.txt")


def test_a_directory_is_read_sorted_and_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("b/2.jsonl.zst", "b/10.jsonl.gz", "a.parquet"):
        write_format(root / name)
    (root / "z.txt").write_text("the last")
    for name in ("README.md", "dataset_infos.json", ".git/x.jsonl", ".hidden.jsonl"):
        (root / name).write_text("not JSON, not a document")
    with caplog.at_level("INFO", logger="dla_data"):
        readers = Source(path=str(root)).readers()
    assert [reader.name.removeprefix(f"{root}/") for reader in readers] == [
        "a.parquet",
        "b/10.jsonl.gz",
        "b/2.jsonl.zst",
        "z.txt",
    ]
    read = "1 .parquet, 1 .jsonl.gz, 1 .jsonl.zst and 1 more kind: b/10.jsonl.gz, b/2.jsonl.zst, z.txt"
    assert f"4 files read ({read}), 2 of other kinds left out" in caplog.text
    assert sum(len(list(reader.documents())) for reader in readers) == 3 * len(TEXTS) + 1


def test_a_pattern_takes_the_files_it_matches(tmp_path: Path) -> None:
    for name in ("arxiv_b.jsonl", "arxiv_a.jsonl", "book.jsonl"):
        write_format(tmp_path / name)
    readers = Source(path=str(tmp_path / "arxiv*.jsonl")).readers()
    assert [Path(reader.name).name for reader in readers] == ["arxiv_a.jsonl", "arxiv_b.jsonl"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "open', r"it is not JSON \(Unterminated string starting at column 10\)"),
        (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", r"it is not JSON \(a number of too many digits\)"),
        (b"[1, 2]", r"it holds a list, not an object"),
        (b'{"content": "x", "id": 3}', r"it has no field 'text'\. Fields present: 'content', 'id'"),
        (b'{"text": null}', r"field 'text' holds null, not a text"),
        (b'{"text": 3}', r"field 'text' holds a number"),
        (b'{"text": ""}', r"field 'text' is an empty document"),
        (b'{"text": " \\n "}', r"field 'text' is an empty document"),
        (b'{"text": "caf\xe9"}', r"it is not UTF-8: byte 0xe9 at byte [\d,]+ of the text"),
        (b'{"text": "\\ud800"}', r"field 'text' is not valid Unicode at character 0"),
    ],
)
def test_a_bad_line_is_named_and_may_be_skipped(line: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = json_lines(["one", "two"]).splitlines(keepends=True)
    path.write_bytes(good[0] + b"\n" + line + b"\n" + good[1])
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: {said}.*skip_bad"):
        texts_of(path)
    log = ReadingLog(skip_bad=1)
    assert texts_of(path, log) == ["one", "two"]
    assert [row.place for row in log.skipped] == [f"{path}, line 3"]


def test_no_more_bad_rows_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"broken {number}\n" for number in range(3)) + json_lines(["good"]).decode())
    assert texts_of(path, ReadingLog(skip_bad=3)) == ["good"]
    with pytest.raises(DataError, match=r"line 3.*bad row number 3, and skip_bad allows 2 \(the first: .*line 1"):
        texts_of(path, ReadingLog(skip_bad=2))


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.jsonl.zst"])
def test_a_compressed_file_that_was_cut_off_is_an_error_whatever_may_be_skipped(name: str, tmp_path: Path) -> None:
    path = write_format(tmp_path / name)
    content = path.read_bytes().rstrip(b"\0")
    for end in (len(content) - 1, len(content) - 30, 5):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=rf"{name} is cut off.*\d+ lines could be read\. Fetch the file again"):
            texts_of(path, ReadingLog(skip_bad=1000))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} is empty"):
        texts_of(path)
    path.write_bytes(content[: len(content) // 3] + b"\xff" * 40 + content[len(content) // 3 + 40 :])
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        texts_of(path)


def test_a_plain_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes(json_lines(["one", "two"])[:-9])
    with pytest.raises(DataError, match=r"line 2: it is not JSON .*no end: the file may be cut off\. Mend it"):
        texts_of(path)


def test_one_json_array_is_told_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text('[\n{"text": "a"}\n]\n')
    with pytest.raises(DataError, match="begins like one JSON array"):
        texts_of(path)


def test_bad_parquet_rows_are_named_and_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    values = pyarrow.array([b"one", b"caf\xe9", b"two", None, b" "], pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), len(values), values.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), path, row_group_size=2)
    with pytest.raises(DataError, match=r"bad\.parquet, row 1 \(row group 0\): its text is not UTF-8: byte 0xe9"):
        texts_of(path)
    log = ReadingLog(skip_bad=3)
    assert texts_of(path, log) == ["one", "two"]
    assert [row.reason for row in log.skipped][1:] == [
        "column 'text' holds null, not a text",
        "column 'text' is an empty document",
    ]
    with pytest.raises(DataError, match=r"has no column 'content'\. Columns present: text\."):
        texts_of(path, text_field="content")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"bad\.parquet is damaged or not a Parquet file"):
        texts_of(path)


def test_bad_text_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt: it is not UTF-8: byte 0xe9 at byte 8, line 2"):
        texts_of(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"a\.txt: the file is an empty document"):
        texts_of(path)
    assert texts_of(path, ReadingLog(skip_bad=1)) == []


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("x")
    for path, said in [
        (tmp_path / "missing", "no such file or directory, and no hub name"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "other", "of its 1 file none ends in"),
        (tmp_path / "*.jsonl", "no file matches"),
    ]:
        with pytest.raises(DataError, match=said):
            Source(path=str(path)).readers()
    with pytest.raises(DataError, match="read as files, which have no configuration 'en'"):
        Source(path=str(tmp_path / "other"), config="en").readers()
