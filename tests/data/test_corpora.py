"""Documents have stable names in a stable order, and text that cannot be used is named."""

import os
import sysconfig
from pathlib import Path

import pytest

from dla_data.corpora import Document, StdlibCorpus, TextCorpus, stdlib_documents, text_documents
from dla_data.errors import DataError


def test_a_directory_gives_its_text_files_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a.txt", "B.txt", "notes.html", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = ["B.txt", "a.txt", "a/z.md", "b.txt"]
    assert list(text_documents(tmp_path)) == [Document(name, name) for name in expected]
    assert [document.name for document in text_documents(tmp_path, suffixes=(".html",))] == ["notes.html"]


def test_a_file_is_one_document_whatever_its_name_and_line_ends_survive(tmp_path: Path) -> None:
    path = tmp_path / "book"
    path.write_bytes("première\r\nligne\n".encode())
    assert list(text_documents(path)) == [Document("book", "première\r\nligne\n")]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbftwo")
    assert list(text_documents(tmp_path)) == [Document("a.txt", "one \ufefftwo")]


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("caf\u00e9".encode("latin-1"))
    documents = text_documents(tmp_path)
    assert next(documents).name == "a.txt"
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8 text: byte 0xe9 at offset 3 .*iconv"):
        next(documents)


def test_missing_unsuitable_and_empty_places_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no corpus at .*nowhere"):
        text_documents(tmp_path / "nowhere")
    (tmp_path / "page.html").touch()
    with pytest.raises(DataError, match=r"none of its 1 file ends in \.txt, \.md"):
        text_documents(tmp_path)
    with pytest.raises(DataError, match=r"suffix 'txt' does not begin with a dot: write '\.txt'"):
        text_documents(tmp_path, suffixes=("txt",))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a directory"):
        text_documents(tmp_path / "pipe")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot read .*gone\.txt: No such file"):
        list(text_documents(tmp_path))


def test_the_standard_library_is_there_without_tests_and_packages() -> None:
    documents = list(stdlib_documents())
    names = [document.name for document in documents]
    assert {"argparse.py", "asyncio/base_events.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names)
    assert len(names) == len(set(names))
    parts = {part for name in names for part in name.split("/")}
    assert parts.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
    assert not [name for name in names if "sysconfigdata" in name]
    assert sum(len(document.text) for document in documents) > 7_000_000


def test_the_standard_library_skips_what_is_not_utf8_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.py").write_text("good")
    (tmp_path / "old.py").write_bytes(b"\xe9")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_good.py").write_text("left out")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    skipped: list[str] = []
    assert list(StdlibCorpus().documents(skipped)) == [Document("good.py", "good")]
    assert skipped == ["old.py"]
    assert len(list(stdlib_documents())) == 1


def test_a_python_without_sources_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no Python source in"):
        stdlib_documents()


def test_labels_are_fit_for_file_names(tmp_path: Path) -> None:
    assert StdlibCorpus().label == "stdlib"
    assert TextCorpus(tmp_path / "Jane Austen: Emma.txt").label == "Jane-Austen--Emma"
    assert TextCorpus("/").label == "text"
    assert TextCorpus("relative.txt").description == str(Path.cwd() / "relative.txt")
