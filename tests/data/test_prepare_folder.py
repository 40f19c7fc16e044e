"""The folder of a preparation that did not come to its first shard: nothing stays, and nothing that stayed matters."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.shards.prepared_manifest import PreparedManifest
from dla_data.tokenizer import save_tokenizer, train_tokenizer

TEXTS = [f"text {number} of many " + "alpha beta gamma " * (number % 5 + 1) for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(train_tokenizer(TEXTS, 270), path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus" / "texts.jsonl"
    path.parent.mkdir()
    path.write_text(lines(TEXTS))
    return path


@pytest.fixture
def prepare(tmp_path: Path, source: Path, tokenizer_file: Path) -> Callable[..., PreparedManifest]:
    def run(out: Path, text_field: str = "text", **changes: object) -> PreparedManifest:
        options = {"tokenizer": tokenizer_file, "shard_tokens": 400, "validation_share": 0.2}
        how = PrepareOptions(**{**options, **changes})
        return prepare_shards([Source(path=str(source.parent), text_field=text_field)], out, how)

    return run


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def left_by_a_kill(out: Path, finished: Path) -> None:
    """What is there before the first shard has its name."""
    (out / "shards/.000000.0a1b2c3d.tmp").mkdir(parents=True)
    (out / ".prepare.lock").touch()
    for name in ("request.json", "tokenizer.json"):
        (out / name).write_bytes((finished / name).read_bytes())


def test_a_mended_file_begins_anew(prepare: Callable[..., PreparedManifest], source: Path, tmp_path: Path) -> None:
    source.write_text(lines([*TEXTS[:5], "", *TEXTS[5:]]))
    with pytest.raises(DataError, match=r"line 6: field 'text' is an empty document\. Mend it"):
        prepare(tmp_path / "out", shard_tokens=100_000)
    source.write_text(lines(TEXTS))
    assert prepare(tmp_path / "out").counts["train"]["documents"] > 30


def test_a_file_that_cannot_be_mended_any_more_is_called_that(
    prepare: Callable[..., PreparedManifest], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dla_data.shards.encoders._BATCH_CHARACTERS", 200)  # not all is read before it is written
    source.write_text(lines([*TEXTS, ""]))
    with pytest.raises(DataError, match=r"line 61: .*Mend it, or allow .*/out has \d+ shards of the files as they"):
        prepare(tmp_path / "out")
    assert len(prepare(tmp_path / "out", skip_bad=1).skipped) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenizer": Path("missing.json")},
        {"text_field": "body"},
        {"validation_share": 0.999999},
        {"tokenizer": None, "train_tokenizer": 4_000_000},
        {"tokenizer": None, "train_tokenizer": 270, "text_field": "body"},
    ],
)
def test_what_is_refused_leaves_nothing(
    wrong: dict[str, object], prepare: Callable[..., PreparedManifest], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        prepare(tmp_path / "new/deep/out", **wrong)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError):
        prepare(tmp_path / "mine", **wrong)
    assert not list((tmp_path / "mine").iterdir())


def test_what_a_kill_left_binds_no_one(prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    finished = prepare(tmp_path / "finished")
    left_by_a_kill(tmp_path / "out", tmp_path / "finished")
    with pytest.raises(DataError, match="no field 'body'"):
        prepare(tmp_path / "out", text_field="body")
    assert not list((tmp_path / "out").iterdir())
    left_by_a_kill(tmp_path / "out", tmp_path / "finished")
    (tmp_path / "out/request.json").write_text('{\n  "format": "dla-request" and then nothing')
    other = prepare(tmp_path / "out", tokenizer=None, train_tokenizer=265, shard_tokens=300)
    assert (other.vocab_size, other.request["shard_tokens"]) == (265, 300)
    assert finished.vocab_size == 270


def test_what_a_kill_left_below_a_source_is_no_text(
    prepare: Callable[..., PreparedManifest], source: Path, tmp_path: Path
) -> None:
    prepare(tmp_path / "finished")
    left_by_a_kill(source.parent / "tokens", tmp_path / "finished")
    (source.parent / "request.json").write_text('{"text": "a request that is text"}\n')
    for path in (source.parent, source.parent / "**/*.json*"):
        names = [Path(reader.name).name for reader in Source(path=str(path)).readers()]
        assert names == ["request.json", "texts.jsonl"]


@pytest.mark.parametrize("name", ["tokenizer.json", "request.json", "shards"])
def test_what_the_user_has_there_stays(name: str, prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"my": "own"}')
    with pytest.raises(DataError, match=rf"holds other things \({name}\)\. Choose a new or an empty one"):
        prepare(tmp_path / "out", tokenizer=None, train_tokenizer=270)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, '{"my": "own"}')]


def test_a_text_that_changed_is_named_and_one_only_written_again_can_be_told(
    prepare: Callable[..., PreparedManifest], source: Path, tmp_path: Path
) -> None:
    manifest = prepare(tmp_path / "out")
    os.utime(source, ns=(1, 1_700_000_000_123_456_789))
    with pytest.raises(
        DataError, match=r"differs is files; .*texts\.jsonl has the same size, but was .*: touch -d"
    ) as caught:
        prepare(tmp_path / "out")
    subprocess.run(str(caught.value).split("back: ")[1].split(". Ask")[0], shell=True, check=True)
    assert prepare(tmp_path / "out") == manifest
    (source.parent / "more.txt").write_text("more")
    with pytest.raises(DataError, match=r"more\.txt is new\. Ask for the same"):
        prepare(tmp_path / "out")
    source.write_text(lines(TEXTS[1:]))
    with pytest.raises(DataError, match=r"texts\.jsonl has [\d,]+ bytes and had [\d,]+ \(and 1 more file\)\. Ask for"):
        prepare(tmp_path / "out")
    source.unlink()
    with pytest.raises(DataError, match=r"texts\.jsonl is not among the sources any more \(and 1 more file\)"):
        prepare(tmp_path / "out")


def test_a_manifest_whose_shards_were_removed_finishes_nothing(
    prepare: Callable[..., PreparedManifest], tmp_path: Path
) -> None:
    prepare(tmp_path / "out")
    subprocess.run(["rm", "-r", tmp_path / "out/shards"], check=True)
    assert prepare(tmp_path / "out").shards
    assert (tmp_path / "out/shards/000000").is_dir()


def test_a_source_is_no_output_directory(prepare: Callable[..., PreparedManifest], source: Path) -> None:
    with pytest.raises(DataError, match=r"is a source itself\. Choose another one"):
        prepare(source.parent / "." / ".." / source.parent.name)
    assert list(source.parent.iterdir()) == [source]
