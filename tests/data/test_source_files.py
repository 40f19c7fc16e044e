"""Which files a directory or a pattern means: all of them, each once, or an error."""

import os
from pathlib import Path
from typing import Any

import pytest

from dla_data.corpora import TextCorpus
from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.readers.kinds import said_of_files


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"this is {name}")


def names(root: Path, pattern: str = "") -> list[str]:
    readers = Source(path=os.path.join(root, pattern)).readers()
    return [os.path.relpath(reader.name, root) for reader in readers]


def closed(monkeypatch: pytest.MonkeyPatch, *, to: str, folder: str) -> None:
    """Deny looking into `folder`, as its permissions would to anyone but root."""
    original = getattr(os, to)

    def denying(path: os.PathLike[str] | str | int = ".", *rest: Any, **how: Any) -> object:
        if not isinstance(path, int) and os.fspath(path).rstrip("/") == folder:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path, *rest, **how)

    monkeypatch.setattr(os, to, denying)


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt", "*/deep/*.txt"])
def test_a_directory_that_cannot_be_listed_is_an_error(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "open/deep/a.txt", "open/a.txt", "shut/deep/a.txt", "shut/a.txt")
    assert any("shut" in name for name in names(tmp_path, pattern))
    closed(monkeypatch, to="scandir", folder=f"{tmp_path}/{'shut/deep' if 'deep' in pattern else 'shut'}")
    with pytest.raises(DataError, match=r"cannot list .*/shut.*: Permission denied\. Make it readable or leave it out"):
        names(tmp_path, pattern)


def test_a_directory_that_a_pattern_cannot_enter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "open/deep/a.txt", "shut/a.txt")
    assert names(tmp_path, "*/deep/*.txt") == ["open/deep/a.txt"]
    closed(monkeypatch, to="stat", folder=f"{tmp_path}/shut/.")
    with pytest.raises(DataError, match=r"cannot list .*/shut/\.: Permission denied"):
        names(tmp_path, "*/deep/*.txt")


@pytest.mark.parametrize("pattern", ["a.txt", "*.txt"])
def test_a_source_where_nothing_can_be_looked_at_is_an_error(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(monkeypatch, to="stat", folder=f"{tmp_path}/{pattern}")
    with pytest.raises(DataError, match=r"cannot read .*\.txt: Permission denied\. Make it readable or leave it out"):
        names(tmp_path, pattern)


def test_links_to_directories_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "corpus/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt")
    (tmp_path / "corpus/link").symlink_to(tmp_path / "elsewhere")
    for pattern in ("", "**/*.txt"):
        assert names(tmp_path / "corpus", pattern) == ["a.txt", "link/b.txt", "link/deep/c.txt"]


def test_what_links_lead_to_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "corpus/z/a.txt", "elsewhere/b.txt")
    for name, target in {"a": "corpus/z", "y": "elsewhere", "x": "elsewhere", "z/up": "corpus", "z/out": "."}.items():
        (tmp_path / "corpus" / name).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "corpus")
    assert names(tmp_path / "corpus") == ["x/b.txt", "z/a.txt"]
    assert f"corpus/z/up leads back to {tmp_path}/corpus, in which it lies: it is not followed" in caplog.text


def test_a_pattern_gives_every_file_once(tmp_path: Path) -> None:
    make(tmp_path, "x.txt", "a/y.txt", "a/b/z.txt")
    everything = ["a/b/z.txt", "a/y.txt", "x.txt"]
    assert names(tmp_path, "**/*.txt") == names(tmp_path, "**/**/*.txt") == everything
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    assert names(tmp_path, "**/*.txt") == everything


def test_a_link_to_nothing_is_an_error_where_it_would_be_data(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / "notes.html").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    for pattern in ("", "*.txt"):
        with pytest.raises(DataError, match=r"cannot read .*/b\.txt: No such file or directory\. Make it readable or"):
            names(tmp_path, pattern)


def test_a_folder_of_texts_is_the_same_one_for_every_kind_of_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "corpus/a.txt", "corpus/b.md", "corpus/c.rst", "corpus/d.py", "elsewhere/f.txt")
    make(tmp_path, "corpus/e.html", "corpus/g.html", "corpus/LICENSE", "corpus/.hidden.txt")
    (tmp_path / "corpus/link").symlink_to(tmp_path / "elsewhere")
    corpus = TextCorpus(tmp_path / "corpus")
    with caplog.at_level("INFO", logger="dla_data"):
        read = names(tmp_path / "corpus")
    assert read == [document.name for document in corpus.documents()]
    assert read == ["a.txt", "b.md", "c.rst", "d.py", "link/f.txt"]
    said = (
        "5 files read (2 .txt, 1 .md, 1 .rst and 1 more kind: b.md, c.rst, d.py), 3 of other kinds left out (2 .html, "
        "1 without a suffix): LICENSE, e.html, g.html"
    )
    assert f"{tmp_path}/corpus: {said}" in caplog.messages
    assert corpus.remark == f"{tmp_path}/corpus: {said}"


def test_beside_rows_only_plain_text_is_text(tmp_path: Path) -> None:
    """What comes with a data set, such as its card, is none of its documents."""
    make(tmp_path, "rows.jsonl", "more.txt", "README.md", "loader.py", "dataset_info.json")
    assert names(tmp_path) == ["more.txt", "rows.jsonl"]
    (tmp_path / "rows.jsonl").unlink()
    assert names(tmp_path) == ["README.md", "loader.py", "more.txt"]


def test_a_text_of_another_kind_that_is_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.txt", "b.txt")
    corpus = TextCorpus(tmp_path)
    with caplog.at_level("INFO", logger="dla_data"):
        names(tmp_path)
        assert (corpus.remark, caplog.messages) == (None, [])
        make(tmp_path, "README.md")
        names(tmp_path)
    assert corpus.remark == f"{tmp_path}: 3 files read (2 .txt, 1 .md: README.md)"
    assert caplog.messages == [corpus.remark]


def test_a_pipe_is_no_text_and_is_not_waited_for(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    corpus = TextCorpus(tmp_path)
    assert [document.name for document in corpus.documents()] == ["a.txt"]
    assert corpus.remark == f"{tmp_path}: 1 file read, 1 of other kinds left out (1 .txt): b.txt"


def test_a_link_that_leads_back_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / "loop").symlink_to(".")
    for _ in range(3):
        assert names(tmp_path) == ["a.txt"]
    assert caplog.text.count("leads back to") == 1


def test_what_is_left_out_is_named_in_one_line() -> None:
    many = [f"{number}{suffix}" for number, suffix in enumerate([".a", ".a", ".b", ".c", ".d", ".e"])]
    assert said_of_files(["0.txt"], many) == (
        "1 file read, 6 of other kinds left out (2 .a, 1 .b, 1 .c and 2 more kinds): 0.a, 1.a, 2.b, ..."
    )
