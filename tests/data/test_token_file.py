"""A token file gives back what was written, and whatever happened to it on disk is noticed and named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dla_data import token_file
from dla_data.errors import DataError
from dla_data.token_file import TokenFile, write_token_file
from dla_data.tokenizer import Encoded

DOCUMENTS = [[1, 2, 3], [], [299, 4], [7]]


def test_documents_come_back_each_with_its_end(write_tokens) -> None:
    tokens = write_tokens(DOCUMENTS)
    assert tokens.read(0, tokens.tokens).tolist() == [1, 2, 3, 0, 0, 299, 4, 0, 7, 0]
    assert tokens.document_starts.tolist() == [0, 4, 5, 8]
    assert tokens.read(5, 7).dtype == np.int64
    manifest = tokens.manifest
    assert (manifest.tokens, manifest.documents, manifest.text_bytes, manifest.dtype) == (10, 4, 6, "uint16")
    tokens.verify()


def test_the_bytes_on_disk_are_little_endian_and_as_small_as_the_vocabulary_allows(write_tokens) -> None:
    small = write_tokens([[258]], "small")
    large = write_tokens([[65536]], "large", vocab_size=65537)
    assert (small.path / "tokens.bin").read_bytes() == b"\x02\x01\x00\x00"
    assert (large.path / "tokens.bin").read_bytes() == b"\x00\x00\x01\x00\x00\x00\x00\x00"
    assert large.read(0, 1).tolist() == [65536]
    assert write_tokens([[65535]], "edge", vocab_size=65536).manifest.dtype == "uint16"


def test_the_same_documents_give_the_same_bytes(write_tokens) -> None:
    one, two = write_tokens(DOCUMENTS, "one"), write_tokens(DOCUMENTS, "two")
    for name in ("tokens.bin", "offsets.npy", "manifest.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy"])
def test_truncated_and_missing_files_are_noticed_on_opening(write_tokens, name: str) -> None:
    path = write_tokens(DOCUMENTS).path / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name} has {size - 1:,} bytes, but the manifest says {size:,}.*Delete"):
        TokenFile.open(path.parent)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        TokenFile.open(path.parent)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy"])
def test_a_flipped_bit_is_noticed_on_verifying(write_tokens, name: str) -> None:
    tokens = write_tokens(DOCUMENTS)
    flip_byte(tokens.path / name)
    opened = TokenFile.open(tokens.path)  # sizes are right
    expected = tokens.manifest.files[name].sha256
    with pytest.raises(DataError, match=rf"{name} is damaged: its SHA-256 is \w+, but the manifest says {expected}"):
        opened.verify()
    with pytest.raises(DataError, match="is damaged"):
        TokenFile.open(tokens.path, verify=True)


def test_an_array_that_would_need_unpickling_is_refused(write_tokens) -> None:
    tokens = write_tokens(DOCUMENTS)
    path = tokens.path / "offsets.npy"
    np.save(path, np.array([print, print], dtype=object), allow_pickle=True)
    change_manifest(tokens.path, lambda content: content["files"]["offsets.npy"].update(bytes=path.stat().st_size))
    with pytest.raises(DataError, match="cannot map the token file"):
        TokenFile.open(tokens.path)


def change_manifest(directory: Path, change) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(format="other"), "not the manifest of a token file"),
        (lambda content: content.update(version=2), "format version 2, and this program reads 1"),
        (lambda content: content.update(tokens="many"), "tokens is 'many', expected int"),
        (lambda content: content.update(tokens=-1), "tokens is -1, expected 0 or more"),
        (lambda content: content.update(tokens=9), r"says 9 tokens \(18 bytes\), but 20 bytes"),
        (lambda content: content.update(documents=3), r"holds int64 \[4\], but the manifest says int64 \[3\]"),
        (lambda content: content.update(dtype="object"), "dtype 'object' is neither"),
        (lambda content: content.update(surprise=1), "unknown key 'surprise'"),
        (lambda content: content.pop("source"), "key 'source' is missing"),
        (lambda content: content["files"].pop("tokens.bin"), "does not describe tokens.bin"),
        (lambda content: content["files"].update({"tokens.bin": 3}), "tokens.bin: is no record"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(write_tokens, change, words: str) -> None:
    path = write_tokens(DOCUMENTS).path
    change_manifest(path, change)
    with pytest.raises(DataError, match=words):
        TokenFile.open(path)


def test_manifests_that_are_no_json_are_refused(write_tokens) -> None:
    path = write_tokens(DOCUMENTS).path / "manifest.json"
    for content in (b"", b'{"format": "dla-to', b"\xff\xfe", b"[]"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"manifest\.json is (damaged|not the manifest)"):
            TokenFile.open(path.parent)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such directory"):
        TokenFile.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"it has no manifest\.json"):
        TokenFile.open(tmp_path)


@pytest.mark.parametrize("starts", [[0, 4, 4, 8], [0, 4, 5, 10], [1, 4, 5, 8], [0, 5, 4, 8]])
def test_starts_that_do_not_rise_are_noticed_even_with_right_checksums(write_tokens, starts: list[int]) -> None:
    path = write_tokens(DOCUMENTS).path
    np.save(path / "offsets.npy", np.array(starts, "<i8"))
    digest = hashlib.sha256((path / "offsets.npy").read_bytes()).hexdigest()
    change_manifest(path, lambda content: content["files"]["offsets.npy"].update(sha256=digest))
    with pytest.raises(DataError, match="document starts do not rise from 0 to below 10"):
        TokenFile.open(path, verify=True)


@pytest.mark.parametrize("together", [1, 4, 100])
def test_tokens_beyond_the_vocabulary_are_noticed_even_with_right_checksums(
    write_tokens, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(token_file, "_SCAN_TOKENS", together)  # token 299 is the sixth
    path = write_tokens(DOCUMENTS).path
    change_manifest(path, lambda content: content.update(vocab_size=299))
    with pytest.raises(DataError, match="holds token 299, but the manifest says a vocabulary of 299"):
        TokenFile.open(path, verify=True)


def test_reading_outside_is_refused(write_tokens) -> None:
    tokens = write_tokens(DOCUMENTS)
    for start, stop in [(0, 11), (-1, 2), (4, 3)]:
        with pytest.raises(DataError, match=f"tokens {start} to {stop} asked for"):
            tokens.read(start, stop)


def test_a_tokenizer_of_other_data_is_refused(write_tokens) -> None:
    tokens = write_tokens(DOCUMENTS, tokenizer_fingerprint="a" * 64)
    tokens.require_tokenizer("a" * 64)
    with pytest.raises(DataError, match=f"tokens in .* made by tokenizer {'a' * 16}, but .* is {'b' * 16}"):
        tokens.require_tokenizer("b" * 64)


def test_failed_writing_leaves_nothing(tmp_path: Path, write_tokens) -> None:
    with pytest.raises(DataError, match=r"document 1 .* holds token 300, outside the vocabulary of 300"):
        write_tokens([[1], [300]])
    with pytest.raises(DataError, match="no documents"):
        write_tokens([])
    with pytest.raises(DataError, match="end-of-document token 300 is outside"):
        write_tokens([[1]], end_of_document=300)

    def interrupted():
        yield Encoded(np.array([1], dtype=np.uint32), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(
            tmp_path / "t",
            interrupted(),
            vocab_size=300,
            end_of_document=0,
            tokenizer_fingerprint="",
            source="",
        )
    assert list(tmp_path.iterdir()) == []


def test_an_existing_token_file_is_not_overwritten(write_tokens) -> None:
    tokens = write_tokens(DOCUMENTS)
    with pytest.raises(DataError, match="exists already"):
        write_tokens([[9]])
    assert TokenFile.open(tokens.path, verify=True).tokens == 10
