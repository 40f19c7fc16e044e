"""Preparing a data set of the hub: the commit is noted, and read again by whoever goes on."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.shards.prepared import PreparedTokens
from dla_data.shards.prepared_manifest import PreparedManifest
from dla_data.shards.shard import ShardWriter
from dla_data.tokenizer import save_tokenizer, train_tokenizer
from tests.data.local_hub import LocalHub, served

NAME = "owner/set"
FIRST = [f"first {number} " + "alpha beta gamma " * (number % 5 + 1) for number in range(60)]
SECOND = [text.replace("first", "other") for text in FIRST]


def files(texts: list[str]) -> dict[str, str]:
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    return {"data/0.jsonl": "".join(rows[:30]), "data/1.jsonl": "".join(rows[30:])}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with served(hub := LocalHub(), tmp_path / "hugging face"):
        yield hub


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., PreparedManifest]:
    save_tokenizer(train_tokenizer(FIRST, 270), tmp_path / "own.json")
    options = PrepareOptions(tokenizer=tmp_path / "own.json", shard_tokens=400, validation_share=0.2)
    return lambda out, path=NAME: prepare_shards([Source(path=path)], tmp_path / out, options)


@pytest.fixture
def stop_in_second_shard(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    def stop(work: Callable[[], object]) -> None:
        closed: list[object] = []

        def close(writer: ShardWriter, record: object) -> None:
            if closed:
                raise KeyboardInterrupt
            closed.append(record)
            original(writer, record)  # type: ignore[arg-type]

        original = ShardWriter.close
        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "close", close)
            with pytest.raises(KeyboardInterrupt):
                work()

    return stop


def tokens(out: Path) -> list[int]:
    opened = PreparedTokens.open(out, verify=True)
    return [*opened.train.read(0, opened.train.tokens), *opened.validation.read(0, opened.validation.tokens)]


def test_a_preparation_goes_on_with_the_commit_that_it_began_with(
    hub: LocalHub,
    prepare: Callable[..., PreparedManifest],
    stop_in_second_shard: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dla_data")
    first = hub.commit(NAME, files(FIRST), "main", "v1")
    straight = prepare("straight")
    assert straight.request["versions"][NAME]["revision"] == first
    stop_in_second_shard(lambda: prepare("stopped"))
    second = hub.commit(NAME, files(SECOND))
    finished = prepare("stopped")
    assert finished == straight
    assert tokens(tmp_path / "stopped") == tokens(tmp_path / "straight")
    assert f"{NAME}: commit {first}, as when the folder was begun" in caplog.text
    # A finished folder stays what it is; a new one has the new text.
    assert prepare("stopped") == straight
    assert prepare("new").request["versions"][NAME]["revision"] == second
    assert tokens(tmp_path / "new") != tokens(tmp_path / "straight")
    tagged = prepare("tagged", f"{NAME}@v1")
    assert tagged.request["versions"][f"{NAME}@v1"] == straight.request["versions"][NAME]
    assert tokens(tmp_path / "tagged") == tokens(tmp_path / "straight")
    with pytest.raises(DataError, match="holds shards of another preparation: what differs is sources, versions; "):
        prepare("stopped", f"{NAME}@v1")


def test_a_changed_folder_that_is_read_as_a_data_set_is_not_gone_on_with(
    prepare: Callable[..., PreparedManifest],
    stop_in_second_shard: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    for name, content in files(FIRST).items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(content)
    source = f"hf:{tmp_path / 'set'}"
    stop_in_second_shard(lambda: prepare("out", source))
    for name, content in files([*SECOND, "one more"]).items():
        (tmp_path / "set" / name).write_text(content)
    with pytest.raises(DataError, match="holds shards of another preparation: what differs is versions; "):
        prepare("out", source)


def test_files_have_no_versions_in_the_request(prepare: Callable[..., PreparedManifest], tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(files(FIRST).values()))
    request = prepare("out", str(tmp_path / "texts.jsonl")).request
    assert set(request) == {"sources", "files", "tokenizer", "shard_tokens", "validation_share"}
    assert set(request["sources"][0]) == {"path", "text_field", "config", "split"}
