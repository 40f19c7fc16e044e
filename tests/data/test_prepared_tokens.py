"""Prepared folders read again: shards as one row of tokens, windows with their documents, and damage that is named."""

import copy
import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.separate_windows import SeparateWindows, lay_in_a_row
from dla_data.shards import sharded_tokens
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.shards.prepared import PreparedTokens
from dla_data.shards.shard import PARTS
from dla_data.token_file import TokenFile
from dla_data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from dla_data.windows import PackedWindows

TEXTS = [f"{number} " + "abcdefgh" * (number % 5) + "z" * (number % 3) for number in range(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards of texts, a byte a token."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare_shards(
        [Source(path=str(root / "texts.jsonl"))],
        root / "out",
        PrepareOptions(train_tokenizer=257, shard_tokens=300, validation_share=0.2),
    )
    return root / "out"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def whole(made: Path, part: str) -> tuple[np.ndarray, list[int]]:
    """All tokens of a part, and where documents begin, put together by hand."""
    tokens, starts, total = [], [], 0
    for shard in sorted((made / "shards").iterdir()):
        if (shard / part).is_dir():
            file = TokenFile.open(shard / part)
            tokens.append(file.read(0, file.tokens))
            starts += (file.document_starts + total).tolist()
            total += file.tokens
    return np.concatenate(tokens), starts


@pytest.mark.parametrize("part", ["train", "validation"])
def test_shards_read_as_one_row(made: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_tokens, "_OPEN_AT_ONCE", 2)
    prepared = PreparedTokens.open(made, verify=True)
    source = getattr(prepared, part)
    tokens, starts = whole(made, part)
    assert len(prepared.manifest.shards) > 3
    assert source.tokens == len(tokens) == prepared.manifest.counts[part]["tokens"]
    draw = np.random.default_rng(0)
    for start, stop in [(0, len(tokens)), (5, 5), *np.sort(draw.integers(0, len(tokens) + 1, (60, 2)), 1).tolist()]:
        np.testing.assert_array_equal(source.read(start, stop), tokens[start:stop])
        expected = [begin for begin in starts if start <= begin < stop]
        np.testing.assert_array_equal(source.document_starts(start, stop), expected)
    with pytest.raises(DataError, match=r"tokens 3 to \d+ asked for, but the .* part of .* has tokens 0 to"):
        source.read(3, len(tokens) + 1)


def test_a_fingerprint_is_that_of_the_tokens_of_every_shard_of_its_part(made: Path) -> None:
    prepared = PreparedTokens.open(made)
    shards = prepared.manifest.shards
    for number, shard in enumerate(shards):
        for changed in shard.parts:
            parts = copy.deepcopy(shard.parts)
            parts[changed]["sha256"]["tokens.bin"] = "0" * 64
            others = [*shards[:number], dataclasses.replace(shard, parts=parts), *shards[number + 1 :]]
            other = dataclasses.replace(prepared, manifest=dataclasses.replace(prepared.manifest, shards=others))
            noticed = [part for part in PARTS if other.fingerprint(part) != prepared.fingerprint(part)]
            assert noticed == [changed], shard.name


@pytest.mark.parametrize("window", [1, 2, 7, 64])
def test_separate_windows_are_the_packed_ones_cut_where_a_document_ends(made: Path, window: int) -> None:
    source = PreparedTokens.open(made).train
    _, starts = whole(made, "train")
    packed, separate = PackedWindows(source, window), SeparateWindows(source, window)
    assert len(separate) == len(packed)
    for index in range(0, len(packed), 3):
        found = separate[index]
        assert torch.equal(found.tokens, packed[index])
        # A document's inputs begin with the end-of-document token in front of it: id 0, before a first token.
        begins = [p for p in range(1, window) if index * window + p + 1 in starts]
        assert all(found.tokens[p] == 0 for p in begins)
        assert found.starts.tolist() == [0, *begins]


def test_windows_in_a_row_keep_apart(made: Path) -> None:
    windows = SeparateWindows(PreparedTokens.open(made).train, 40)
    items = [windows[3], windows[11], windows[4]]
    batch = lay_in_a_row(items)
    assert batch.tokens.shape == (3, 41)
    assert batch.cu_seqlens.dtype == torch.int32
    expected = [start + number * 40 for number, item in enumerate(items) for start in item.starts.tolist()]
    assert batch.cu_seqlens.tolist() == [*expected, 120]


def test_a_shard_whose_checksum_fails_is_named(folder: Path) -> None:
    damaged = folder / "shards" / "000002" / "train" / "tokens.bin"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    PreparedTokens.open(folder)
    with pytest.raises(DataError, match=r"000002/train/tokens\.bin is damaged: its SHA-256 is"):
        PreparedTokens.open(folder, verify=True)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_sizes_are_compared_without_reading(folder: Path, part: str) -> None:
    damaged = sorted((folder / "shards").glob(f"*/{part}/tokens.bin"))[-1]
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"{part}/tokens\.bin has [\d,]+ bytes, but the manifest says [\d,]+\."):
        PreparedTokens.open(folder)
    damaged.unlink()
    with pytest.raises(DataError, match=rf"{part}/tokens\.bin is missing"):
        PreparedTokens.open(folder)


def test_shards_that_are_not_the_ones_listed(folder: Path) -> None:
    shutil.rmtree(folder / "shards" / "000001")
    with pytest.raises(DataError, match=r"000001 is missing, or not the one that the manifest lists"):
        PreparedTokens.open(folder)
    shutil.copytree(folder / "shards" / "000002", folder / "shards" / "000001")
    with pytest.raises(DataError, match=r"000001 is missing, or not the one that the manifest lists"):
        PreparedTokens.open(folder)


def test_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["abc abc abc abd"] * 4, 259)
    save_tokenizer(other, tmp_path / "other.json")
    prepared = PreparedTokens.open(folder)
    prepared.require_tokenizer(folder / "tokenizer.json")
    with pytest.raises(DataError, match=r"were made by tokenizer [0-9a-f]{16}, but .*other\.json is [0-9a-f]{16}"):
        prepared.require_tokenizer(tmp_path / "other.json")
    save_tokenizer(other, folder / "tokenizer.json")
    with pytest.raises(DataError, match="is not the tokenizer that made the shards"):
        PreparedTokens.open(folder)


def test_what_is_no_finished_folder(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    for text, said in [
        ("{", r"manifest\.json is damaged"),
        ("[]", "is not the manifest of a prepared folder"),
        (json.dumps({**content, "version": 9}), "has format version 9, and this program reads 1"),
        (json.dumps({**content, "shards": [{"name": "000000"}]}), r"manifest\.json is damaged"),
    ]:
        manifest.write_text(text)
        with pytest.raises(DataError, match=said):
            PreparedTokens.open(folder)
    manifest.unlink()
    with pytest.raises(DataError, match=r"is not finished: it has no manifest\.json\. Run the `dla-train prepare`"):
        PreparedTokens.open(folder)
    with pytest.raises(DataError, match="no such directory"):
        PreparedTokens.open(tmp_path / "missing")
    with pytest.raises(DataError, match=r"no prepared tokens at .*: it has no manifest\.json"):
        PreparedTokens.open(tmp_path)


def test_the_first_token_of_a_document_is_predicted_from_the_end_of_the_one_before(made: Path) -> None:
    source = PreparedTokens.open(made).train
    batch = lay_in_a_row([SeparateWindows(source, source.tokens - 1)[0]])
    decode = load_tokenizer(made / "tokenizer.json").decode
    bounds = batch.cu_seqlens.tolist()
    inputs, targets = batch.tokens[0, :-1].tolist(), batch.tokens[0, 1:].tolist()
    for begin, end in list(pairwise(bounds))[1:-1]:
        assert inputs[begin] == targets[end - 1] == 0
        assert decode(targets[begin : end - 1]) in TEXTS
