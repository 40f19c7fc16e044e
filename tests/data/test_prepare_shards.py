"""Shards of tokens: the same bytes for any number of workers and after any interruption; bad rows are counted."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.shards import prepare as prepare_module
from dla_data.shards.encoders import Encoders
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.shards.prepared_manifest import PreparedManifest
from dla_data.shards.shard import ShardWriter
from dla_data.token_file import TokenFile
from dla_data.tokenizer import encode_documents, load_tokenizer, save_tokenizer, train_tokenizer

DOCUMENTS = [
    f"Title {number}\n" + f"word{number} other{number % 7} größe <|endoftext|> " * (number % 23 + 1)
    for number in range(200)
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(train_tokenizer(DOCUMENTS, 300), path)
    return path


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """The documents in two files, with a blank line and two bad rows."""
    root = tmp_path / "sources"
    root.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in DOCUMENTS]
    (root / "a.jsonl").write_text("".join([*lines[:90], "\n", '{"no": 1}\n', *lines[90:110]]))
    rest = "".join([*lines[110:], "broken\n"]).encode()
    (root / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(rest))
    return [Source(path=str(root))]


@pytest.fixture
def prepare(tmp_path: Path, sources: list[Source], tokenizer_file: Path) -> Callable[..., PreparedManifest]:
    def run(out: str, **changes: object) -> PreparedManifest:
        options = {"tokenizer": tokenizer_file, "shard_tokens": 3000, "validation_share": 0.1, "skip_bad": 2}
        return prepare_shards(sources, tmp_path / out, PrepareOptions(**{**options, **changes}))

    return run


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def documents_of(root: Path, manifest: PreparedManifest, part: str) -> list[list[int]]:
    """All documents of a part as ids, without the token that ends each."""
    found = []
    for shard in manifest.shards:
        if part in shard.parts:
            tokens = TokenFile.open(root / "shards" / shard.name / part, verify=True)
            starts = [*tokens.document_starts.tolist(), tokens.tokens]
            for begin, end in pairwise(starts):
                ids = tokens.read(begin, end)
                assert ids[-1] == 0
                found.append(ids[:-1].tolist())
    return found


def test_every_document_is_there_once_in_order(
    prepare: Callable[..., PreparedManifest], tmp_path: Path, tokenizer_file: Path
) -> None:
    manifest = prepare("out")
    expected = [encoded.ids.tolist() for encoded in encode_documents(load_tokenizer(tokenizer_file), DOCUMENTS)]
    train, validation = (documents_of(tmp_path / "out", manifest, part) for part in ("train", "validation"))
    assert 5 <= len(validation) <= 40
    rest = iter(expected)
    assert all(any(document == wanted for wanted in rest) for document in train)  # in the order of the sources
    assert sorted([*train, *validation]) == sorted(expected)
    assert len(manifest.shards) > 3
    counts = manifest.counts
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len(DOCUMENTS)
    assert counts["train"]["tokens"] == sum(len(ids) + 1 for ids in train)
    assert sum(part["text_bytes"] for part in counts.values()) == sum(len(text.encode()) for text in DOCUMENTS)
    assert [Path(row.place).name for row in manifest.skipped] == ["a.jsonl, line 92", "b.jsonl.zst, line 91"]
    assert manifest == PreparedManifest.read(tmp_path / "out")


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    prepare: Callable[..., PreparedManifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dla_data.shards.encoders._BATCH_CHARACTERS", 2000)  # many batches for each
    prepare("one", workers=1)
    prepare("three", workers=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


@pytest.mark.parametrize("shards_before", [0, 1, 3])
def test_going_on_after_an_interruption_gives_the_same_bytes(
    shards_before: int,
    prepare: Callable[..., PreparedManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare("straight")
    closed = []

    def close(writer: ShardWriter, record: object) -> None:
        if len(closed) == shards_before:
            raise KeyboardInterrupt
        closed.append(record)
        original(writer, record)

    original = ShardWriter.close
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", close)
        with pytest.raises(KeyboardInterrupt):
            prepare("stopped")
    shards = tmp_path / "stopped" / "shards"
    assert len(list(shards.glob("0*"))) == shards_before
    if not shards_before:
        assert not (tmp_path / "stopped").exists()
        shards.mkdir(parents=True)  # what a kill leaves before the first shard, which it lets no one clear away
        for name in ("request.json", "tokenizer.json"):
            shutil.copy(tmp_path / "straight" / name, tmp_path / "stopped")
    (leftover := shards / f".{shards_before:06}.0a1b2c3d.tmp").mkdir(parents=True)  # what a kill leaves
    (leftover / "tokens.bin").write_bytes(b"half")
    with pytest.raises(DataError, match="is not finished: it has no manifest"):
        PreparedManifest.read(tmp_path / "stopped")
    prepare("stopped", workers=2)
    assert tree(tmp_path / "stopped").keys() == tree(tmp_path / "straight").keys()
    assert tree(tmp_path / "stopped") == tree(tmp_path / "straight")


def test_without_locks_what_another_process_may_be_writing_stays(
    prepare: Callable[..., PreparedManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    (being_written := tmp_path / "out" / "shards" / ".000000.0a1b2c3d.tmp").mkdir(parents=True)
    (tmp_path / "out" / "shards").rename(tmp_path / "shards")
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_missing", None)
        with pytest.raises(TypeError):
            prepare("out")
    (tmp_path / "shards").rename(tmp_path / "out" / "shards")
    prepare("out")
    assert being_written.is_dir()
    assert ("WARNING", True) in [(record.levelname, "no lock on" in record.getMessage()) for record in caplog.records]


def test_a_finished_folder_is_left_as_it_is(
    prepare: Callable[..., PreparedManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = prepare("out")
    monkeypatch.setattr(prepare_module, "_write_missing", None)  # an error if it were called
    assert prepare("out", workers=2) == manifest


def test_a_folder_below_its_own_source_is_no_source(
    sources: list[Source], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources[0].path)
    options = PrepareOptions(tokenizer=tokenizer_file, shard_tokens=3000, skip_bad=2)
    for source in (Source(path="."), Source(path="**/*.json*")):
        out = Path("tokens", "of" if source.path == "." else "pattern")
        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "close", None)
            with pytest.raises(TypeError):  # stopped
                prepare_shards([source], out, options)
        made = prepare_shards([source], out, options)
        assert prepare_shards([source], out, options) == made
        wanted = ["a.jsonl", "b.jsonl.zst"]
        assert [Path(file["name"]).name for file in made.request["files"]] == wanted
    assert [Path(reader.name).name for reader in Source(path=".").readers()] == wanted


def test_another_request_is_refused(
    prepare: Callable[..., PreparedManifest], tmp_path: Path, sources: list[Source]
) -> None:
    prepare("out")
    with pytest.raises(DataError, match=r"preparation: what differs is shard_tokens \(\d+ then, 4000 now\); "):
        prepare("out", shard_tokens=4000)
    with pytest.raises(DataError, match=r"a tokenizer of 400 is asked for, but .* has 300 entries"):
        prepare("out", tokenizer=None, train_tokenizer=400)
    save_tokenizer(train_tokenizer(DOCUMENTS, 290), tmp_path / "other.json")
    with pytest.raises(DataError, match=r"other\.json is another tokenizer than"):
        prepare("out", tokenizer=tmp_path / "other.json")
    (Path(sources[0].path) / "c.txt").write_text("one more")
    with pytest.raises(DataError, match="shards of another preparation: what differs is files; "):
        prepare("out")


def test_a_folder_begun_by_other_rules_is_refused(prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    prepare("out")
    path = tmp_path / "out" / "request.json"
    for changes in ({"version": 99}, {"format": "other"}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        with pytest.raises(
            DataError, match=r"request\.json was not written by this version of dla-train, which cannot"
        ):
            prepare("out")


def test_names_and_places_of_files_do_not_decide_what_is_validated_on(tokenizer_file: Path, tmp_path: Path) -> None:
    """As they would where each document is a file of its own and all files have the same name."""
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / "one" / str(number)).mkdir(parents=True)
        (tmp_path / "one" / str(number) / "text.txt").write_text(text)
    moved = tmp_path / "moved.jsonl"
    moved.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed([*DOCUMENTS, *DOCUMENTS[:50]])))
    options = PrepareOptions(tokenizer=tokenizer_file, validation_share=0.3)
    found = []
    for source in (tmp_path / "one", moved):
        out = tmp_path / f"tokens of {source.name}"
        made = prepare_shards([Source(path=str(source))], out, options)
        found.append({part: {tuple(ids) for ids in documents_of(out, made, part)} for part in ("train", "validation")})
    assert 40 <= len(found[0]["validation"]) <= 80
    assert found[0] == found[1]
    assert not found[0]["validation"] & found[0]["train"]


def test_a_folder_with_other_things_is_refused(prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"holds other things \(thesis\.tex\)"):
        prepare("out")


def test_a_shard_damaged_before_going_on_is_named(
    prepare: Callable[..., PreparedManifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("out")
    (tmp_path / "out" / "manifest.json").unlink()
    damaged = tmp_path / "out" / "shards" / "000001" / "train" / "tokens.bin"
    content = bytearray(damaged.read_bytes())
    content[10] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"000001/train/tokens\.bin is damaged: its SHA-256"):
        prepare("out")


def test_too_many_bad_rows_stop_and_a_larger_number_goes_on(
    prepare: Callable[..., PreparedManifest], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 92: it has no field 'text'"):
        prepare("out", skip_bad=0)
    with pytest.raises(DataError, match=r"b\.jsonl\.zst, line 91: it is not JSON .*bad row number 2"):
        prepare("out", skip_bad=1)
    assert len(prepare("out", skip_bad=2).skipped) == 2
    prepare("straight")
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def test_a_tokenizer_trained_here(prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    manifest = prepare("out", tokenizer=None, train_tokenizer=290)
    assert manifest.vocab_size == 290
    assert load_tokenizer(tmp_path / "out" / "tokenizer.json").get_vocab_size() == 290
    with pytest.raises(DataError, match="train_tokenizer is 100; it must be at least 257"):
        prepare("small", tokenizer=None, train_tokenizer=100)


def test_sources_without_documents(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no documents in "):
        prepare_shards(
            [Source(path=str(tmp_path / "empty.jsonl"))], tmp_path / "out", PrepareOptions(tokenizer=tokenizer_file)
        )


def test_a_dead_worker_is_said_so(tokenizer_file: Path) -> None:
    with Encoders(load_tokenizer(tokenizer_file), 1) as encoders:
        encoders._processes[0][0].kill()
        with pytest.raises(DataError, match=r"ended with exit code -9 .*Run the same command again"):
            list(encoders.encode(DOCUMENTS))


def test_ctrl_c_while_a_worker_starts_is_not_its_own(tokenizer_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It goes to every process of the terminal; the parent decides, and still gets its own."""
    with Encoders(load_tokenizer(tokenizer_file), 1) as encoders:
        os.kill(encoders._processes[0][0].pid or 0, signal.SIGINT)
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert len(list(encoders.encode(["alpha beta"]))) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_encoders_return_what_the_tokenizer_does(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    texts = [*DOCUMENTS[:20], "x y\n" * 600_000, "last"]  # one spans batches
    with Encoders(tokenizer, 2) as encoders:
        for found, wanted in zip(encoders.encode(texts), encode_documents(tokenizer, texts), strict=True):
            assert np.array_equal(found.ids, wanted.ids)
            assert found.text_bytes == wanted.text_bytes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_tokenizer": 300}, "one of the two"),
        ({"shard_tokens": 0}, "shard_tokens is 0; it must be at least 1"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 100_000}, "workers is 100,000; it must be at most 1,024"),
        ({"skip_bad": -1}, "skip_bad is -1"),
        ({"validation_share": 1.0}, r"validation_share is 1\.0"),
    ],
)
def test_options_out_of_range(change: dict[str, object], said: str, tokenizer_file: Path) -> None:
    with pytest.raises(DataError, match=said):
        PrepareOptions(**{"tokenizer": tokenizer_file, **change})
