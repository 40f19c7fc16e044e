"""Preparing gives sound files, keeps them, notices what changed or broke, and never leaves half of anything."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dla_data import prepare, tokenizer
from dla_data.corpora import TextCorpus
from dla_data.errors import DataError, Unreadable
from dla_data.prepare import PreparedCorpus, prepare_corpus
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint


def entries(cache: Path) -> list[str]:
    """Names of the prepared corpora, and of anything half-written; lock files are not data."""
    folder = cache / "corpora"
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock")) if folder.exists() else []


def decoded(prepared: PreparedCorpus, part: str) -> list[str]:
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    tokens = getattr(prepared, part)
    ids = tokens.read(0, tokens.tokens)
    assert ids[-1] == 0
    return [tokenizer.decode(document.tolist()) for document in np.split(ids[:-1], np.flatnonzero(ids[:-1] == 0))]


@pytest.fixture
def must_not_prepare(monkeypatch: pytest.MonkeyPatch):
    """Returns a function; after it is called, preparing anything fails the test."""

    def forbid() -> None:
        monkeypatch.setattr(prepare, "train_tokenizer", lambda *_: pytest.fail("prepared again"))

    return forbid


def test_both_parts_hold_their_documents_with_one_tokenizer(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    summary = json.loads((prepared.tokenizer_path.parent / "corpus.json").read_text())
    validation = set(summary["validation_documents"])
    files = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*.txt"))
    assert 0 < len(validation) < len(files) == 30
    for part, names in (("train", set(files) - validation), ("validation", validation)):
        texts = [(corpus / name).read_text() for name in files if name in names]
        assert [text.removeprefix("<|endoftext|>") for text in decoded(prepared, part)] == texts
        manifest = getattr(prepared, part).manifest
        assert manifest.documents == len(texts)
        assert manifest.text_bytes == sum(map(len, texts))
        assert manifest.vocab_size == 280
        assert manifest.tokenizer == tokenizer_fingerprint(load_tokenizer(prepared.tokenizer_path))
        assert manifest.source == f"{corpus}, {part} part"


def test_the_tokenizer_learns_from_the_training_part_alone(corpus: Path, tmp_path: Path) -> None:
    first = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "one")
    (name,) = json.loads((first.tokenizer_path.parent / "corpus.json").read_text())["validation_documents"][:1]
    (corpus / name).write_text("zyx zyx zyx " * 500)
    second = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "two")
    assert second.tokenizer_path.read_text() == first.tokenizer_path.read_text()
    assert second.validation.tokens != first.validation.tokens


def test_the_result_is_the_same_to_the_byte(corpus: Path, tmp_path: Path) -> None:
    prepared = [prepare_corpus(TextCorpus(corpus), 280, tmp_path / name) for name in ("one", "two")]
    one, two = (each.tokenizer_path.parent for each in prepared)
    assert one.name == two.name
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) == 8
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_a_sound_cache_is_used_again_even_where_it_cannot_be_written(
    corpus: Path, tmp_path: Path, must_not_prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    must_not_prepare()
    monkeypatch.setattr(prepare, "exclusive", lambda *_: pytest.fail("took the lock, which writes a file"))
    again = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    assert again.tokenizer_path == first.tokenizer_path
    assert again.train.manifest == first.train.manifest


def test_other_text_and_other_vocabularies_are_kept_apart(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for vocab_size in (280, 290):
        prepare_corpus(TextCorpus(corpus), vocab_size, cache)
    with (corpus / "03.txt").open("a") as file:
        file.write("one more line\n")
    prepare_corpus(TextCorpus(corpus), 280, cache)
    (corpus / "03.txt").rename(corpus / "3.txt")  # a name decides about the part and the order
    prepare_corpus(TextCorpus(corpus), 280, cache)
    assert len(entries(cache)) == 4


@pytest.mark.parametrize("place", ["open", "memmap"])
def test_a_machine_that_refuses_to_read_says_nothing_about_the_cache(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """It is neither made again nor is its owner told to delete it."""
    cache = tmp_path / "cache"
    sound = prepare_corpus(TextCorpus(corpus), 280, cache)

    original = Path.open

    def refuse(path: Path, *rest: Any, **how: Any) -> object:
        if place == "open" and path.name != "tokens.bin":
            return original(path, *rest, **how)
        raise OSError(errno.EMFILE if place == "open" else errno.ENOMEM, "refused", str(path))

    with monkeypatch.context() as patch:
        if place == "open":
            patch.setattr(Path, "open", refuse)
        else:
            patch.setattr(np, "memmap", refuse)
        with pytest.raises(Unreadable, match=r"cannot read .*/train.*: refused\. .*the file may be sound") as raised:
            prepare_corpus(TextCorpus(corpus), 280, cache)
    assert "Delete" not in str(raised.value)
    assert "made again" not in caplog.text
    before = sound.tokenizer_path.stat().st_ino
    assert prepare_corpus(TextCorpus(corpus), 280, cache).tokenizer_path.stat().st_ino == before


@pytest.mark.parametrize(
    "name",
    ["train/tokens.bin", "train/offsets.npy", "validation/tokens.bin", "validation/manifest.json", "tokenizer.json"],
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_cache_is_named_and_made_again(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    cache = tmp_path / "cache"
    sound = prepare_corpus(TextCorpus(corpus), 280, cache)
    path = sound.tokenizer_path.parent / name
    before = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(before[: len(before) // 2])
    else:
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
    with caplog.at_level(logging.WARNING, logger="dla_data"):
        prepare_corpus(TextCorpus(corpus), 280, cache)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "damaged and is made again" in warning
    assert str(path.parent) in warning
    assert path.read_bytes() == before
    assert entries(cache) == [sound.tokenizer_path.parent.name]


def test_a_tokenizer_of_another_cache_is_noticed(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    other = prepare_corpus(TextCorpus(corpus), 290, tmp_path / "cache")
    shutil.copy(other.tokenizer_path, prepared.tokenizer_path)
    prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    assert "were made by tokenizer" in caplog.text
    assert load_tokenizer(prepared.tokenizer_path).get_vocab_size() == 280


def test_a_single_file_gives_both_parts(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number} of the book\n" for number in range(2000)))
    prepared = prepare_corpus(TextCorpus(path), 300, tmp_path / "cache")
    assert decoded(prepared, "train")[0] + decoded(prepared, "validation")[0] == path.read_text()
    assert 0.04 < prepared.validation.tokens / prepared.train.tokens < 0.07


def test_files_without_text_are_left_out_and_noted(corpus: Path, tmp_path: Path) -> None:
    (corpus / "05.txt").write_text("")
    (corpus / "06.txt").write_text(" \n\n")
    prepared = prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    assert prepared.train.manifest.documents + prepared.validation.manifest.documents == 28
    summary = json.loads((prepared.tokenizer_path.parent / "corpus.json").read_text())
    assert summary["documents_without_text"] == ["05.txt", "06.txt"]


def make_empty(corpus: Path) -> None:
    for path in corpus.rglob("*.txt"):
        path.write_text("\n")


def make_latin(corpus: Path) -> None:
    (corpus / "07.txt").write_bytes(b"caf\xe9")


@pytest.mark.parametrize(
    ("change", "vocab_size", "words"),
    [
        (shutil.rmtree, 280, "no corpus at .*corpus"),
        (make_empty, 280, "corpus .* is empty: 30 documents, none with text"),
        (make_latin, 280, r"07\.txt is not UTF-8"),
        (lambda corpus: None, 256, "vocabulary of 256 is too small"),
        (lambda corpus: None, 50_000, "corpus supports only"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing(
    corpus: Path, tmp_path: Path, change, vocab_size: int, words: str
) -> None:
    change(corpus)
    with pytest.raises(DataError, match=words):
        prepare_corpus(TextCorpus(corpus), vocab_size, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("step", ["train_tokenizer", "save_tokenizer", "write_token_file", "_write_summary"])
def test_an_interruption_leaves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_what_a_killed_process_left_is_cleared(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepared = prepare_corpus(TextCorpus(corpus), 280, cache).tokenizer_path.parent
    prepared.rename(prepared.with_name(f".{prepared.name}.0123abcd.tmp"))  # killed just before the last step
    prepare_corpus(TextCorpus(corpus), 280, cache)
    assert entries(cache) == [prepared.name]


def test_a_cache_that_cannot_be_written_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the cache directory .*/file/cache.*DLA_TRAIN_CACHE"):
        prepare_corpus(TextCorpus(corpus), 280, tmp_path / "file" / "cache")


def test_a_corpus_that_changes_meanwhile_is_noticed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        lambda: (corpus / "04.txt").write_text("changed"),
        lambda: (corpus / "04.txt").unlink(),
        lambda: (corpus / "044.txt").write_text("new"),
    ]
    train_tokenizer = tokenizer.train_tokenizer
    for change in changes:

        def train_and_change(*arguments, change=change):
            result = train_tokenizer(*arguments)
            change()
            return result

        monkeypatch.setattr(prepare, "train_tokenizer", train_and_change)
        with pytest.raises(DataError, match="changed while it was being prepared"):
            prepare_corpus(TextCorpus(corpus), 280, tmp_path / "cache")
        assert entries(tmp_path / "cache") == []


RACER = """
import sys
from dla_data import prepare
from dla_data.corpora import TextCorpus

corpus, cache = sys.argv[1:]
train_tokenizer = prepare.train_tokenizer

def noted(*arguments):
    print("prepared", flush=True)
    return train_tokenizer(*arguments)

prepare.train_tokenizer = noted
print("ready", flush=True)
sys.stdin.readline()
prepare.prepare_corpus(TextCorpus(corpus), 280, cache).train.verify()
"""


def test_processes_that_race_prepare_once(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(corpus), str(tmp_path / "cache")]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
    said = "".join(racer.communicate()[0] for racer in racers)
    assert [racer.returncode for racer in racers] == [0] * 4
    assert said == "prepared\n"
    assert len(entries(tmp_path / "cache")) == 1
