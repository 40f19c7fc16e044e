"""The tokenizer is exact, literal, reproducible, and of the size asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Encoding, Tokenizer, models, pre_tokenizers

from dla_data import tokenizer as tokenizer_module
from dla_data.end_of_document import end_of_document_id
from dla_data.errors import DataError
from dla_data.tokenizer import (
    END_OF_DOCUMENT,
    encode_documents,
    encode_pieces,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)

TEXTS = [Path(json.__file__).read_text(), Path(json.decoder.__file__).read_text(), Path(os.__file__).read_text()]
AWKWARD = ["", " ", "\n\n", "naïve café 你好 🙂\u200d", "\ttabs\r\nand  spaces ", "x" * 3000, "\x00\x7f\ufeff"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 600)


def test_size_and_end_of_document(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 600
    assert end_of_document_id(tokenizer) == 0
    assert train_tokenizer([""], 257).get_vocab_size() == 257


def test_every_text_comes_back_exactly(tokenizer: Tokenizer) -> None:
    texts = [*AWKWARD, *TEXTS, bytes(range(256)).decode("latin-1")]
    for text, encoded in zip(texts, encode_documents(tokenizer, texts), strict=True):
        assert tokenizer.decode(encoded.ids.tolist(), skip_special_tokens=False) == text
        assert encoded.text_bytes == len(text.encode())
        assert not encoded.ids.size or encoded.ids.max() < 600


def test_the_end_of_document_in_a_text_is_only_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    for each in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        text = f"one{END_OF_DOCUMENT}two"
        (encoded,) = encode_documents(each, [text])
        assert 0 not in encoded.ids
        assert each.decode(encoded.ids.tolist()) == text


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    loaded = load_tokenizer(path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    path.write_text(json.dumps(json.loads(path.read_text())))  # another layout, the same tokenizer
    assert tokenizer_fingerprint(load_tokenizer(path)) == tokenizer_fingerprint(tokenizer)
    for one, two in zip(encode_documents(tokenizer, TEXTS), encode_documents(loaded, TEXTS), strict=True):
        np.testing.assert_array_equal(one.ids, two.ids)


def test_the_fingerprint_tells_tokenizers_apart(tokenizer: Tokenizer) -> None:
    others = [train_tokenizer(TEXTS, 599), train_tokenizer(TEXTS[::-1][:2], 600)]
    reordered = Tokenizer.from_str(tokenizer.to_str())
    reordered.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fingerprints = {tokenizer_fingerprint(each) for each in [tokenizer, reordered, *others]}
    assert len(fingerprints) == 4


def test_training_is_the_same_in_another_process_with_another_number_of_threads(tokenizer: Tokenizer) -> None:
    program = (
        "import json, os\n"
        "from pathlib import Path\n"
        "from dla_data.tokenizer import train_tokenizer, tokenizer_fingerprint\n"
        "files = json.__file__, json.decoder.__file__, os.__file__\n"
        "print(tokenizer_fingerprint(train_tokenizer([Path(file).read_text() for file in files], 600)))\n"
    )
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("vocab_size", [-1, 0, 256])
def test_vocabularies_that_are_too_small_are_refused(vocab_size: int) -> None:
    with pytest.raises(DataError, match=rf"vocabulary of {vocab_size} is too small: .* need 257"):
        train_tokenizer(TEXTS, vocab_size)


def test_vocabularies_that_the_text_does_not_support_are_refused() -> None:
    with pytest.raises(DataError, match=r"vocabulary of 300 asked for, but the corpus supports only 25\d") as caught:
        train_tokenizer(["abc abc"], 300)
    supported = int(str(caught.value).split("supports only ")[1].split(":")[0])
    assert train_tokenizer(["abc abc"], supported).get_vocab_size() == supported


def test_an_error_in_the_texts_reaches_the_caller() -> None:
    def texts():
        yield "fine"
        raise DataError("file x is bad")

    with pytest.raises(DataError, match="file x is bad"):
        train_tokenizer(texts(), 300)


def test_encoding_in_pieces_and_batches_is_encoding_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*AWKWARD, *TEXTS, "a\nb\n\nc \nd\n e\n" * 300]
    whole = [np.array(tokenizer.encode(text).ids, dtype=np.uint32) for text in texts]
    for piece, batch in [(1, 50), (100, 1), (700, 5000)]:
        monkeypatch.setattr(tokenizer_module, "_PIECE_CHARACTERS", piece)
        monkeypatch.setattr(tokenizer_module, "_BATCH_CHARACTERS", batch)
        assert sum(1 for _ in tokenizer_module._pieces(texts, cut=True)) > len(texts) + 10
        for encoded, ids, text in zip(encode_documents(tokenizer, texts), whole, texts, strict=True):
            np.testing.assert_array_equal(encoded.ids, ids)
            assert encoded.text_bytes == len(text.encode())


def test_a_stream_that_waits_holds_ids_and_no_encoding(tokenizer: Tokenizer) -> None:
    pieces = encode_pieces(tokenizer, TEXTS[0])
    next(pieces)
    assert pieces.gi_frame is not None  # type: ignore[attr-defined]
    held = pieces.gi_frame.f_locals.values()  # type: ignore[attr-defined]
    assert not any(isinstance(value, Encoding) for value in held)


def test_texts_are_cut_only_for_tokenizers_known_to_allow_it(tokenizer: Tokenizer) -> None:
    assert tokenizer_module._is_cut_safe(tokenizer)
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not tokenizer_module._is_cut_safe(other)


@pytest.mark.parametrize(
    "added",
    [AddedToken("@@", lstrip=True), AddedToken("@@", rstrip=True), AddedToken("b\n@@"), AddedToken("fine")],
    ids=["takes in what is before it", "takes in what is behind it", "holds a line end", "stays in its line"],
)
def test_added_tokens_that_reach_across_lines_are_not_cut(added: AddedToken, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([added])
    monkeypatch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 20)
    text = "a line b\n@@\nand fine\n" * 12
    (encoded,) = encode_documents(tokenizer, [text])
    assert encoded.ids.tolist() == tokenizer.encode(text).ids
    assert tokenizer_module._is_cut_safe(tokenizer) == (added.content == "fine")


def test_a_file_that_truncates_or_pads_loses_and_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = train_tokenizer(TEXTS, 270)
    texts = [TEXTS[0] * 20, "a"]
    whole = [encoded.ids.tolist() for encoded in encode_documents(tokenizer, texts)]
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=40)
    save_tokenizer(tokenizer, path)
    assert [encoded.ids.tolist() for encoded in encode_documents(load_tokenizer(path), texts)] == whole


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*tokenizer\.json: No such file"):
        load_tokenizer(path)
    for content in (b"", b"{}", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer file"):
            load_tokenizer(path)


def _changed(tokenizer: Tokenizer, path: Path, part: str, **values: object) -> Path:
    tree = json.loads(tokenizer.to_str())
    (tree["model"] if part == "model" else tree["added_tokens"][0]).update(values)
    path.write_text(json.dumps(tree))
    return path


def test_merges_left_out_at_random_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"leaves out merges at random \(dropout 0\.5\).*Set the model's dropout to null"
    ):
        load_tokenizer(_changed(tokenizer, tmp_path / "t.json", "model", dropout=0.5))


def test_the_fingerprint_tells_options_and_flags_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    changes = [
        ("model", {"ignore_merges": True}),
        ("model", {"byte_fallback": True}),
        ("model", {"unk_token": "a"}),
        ("added", {"lstrip": True}),
        ("added", {"special": False}),
    ]
    files = [_changed(tokenizer, tmp_path / f"{n}.json", part, **to) for n, (part, to) in enumerate(changes)]
    found = {tokenizer_fingerprint(load_tokenizer(file)) for file in files}
    assert len(found | {tokenizer_fingerprint(tokenizer)}) == 6


def test_forked_workers_are_not_warned_about(tmp_path: Path) -> None:
    program = (
        "import os, torch\n"
        "from torch.utils.data import DataLoader\n"
        "from dla_data.tokenizer import encode_documents, train_tokenizer\n"
        "tokenizer = train_tokenizer(['some text'] * 100, 258)\n"
        "list(encode_documents(tokenizer, ['some text'] * 100))\n"
        "list(DataLoader([1, 2, 3, 4], num_workers=2, multiprocessing_context='fork'))\n"
        "print(os.environ['TOKENIZERS_PARALLELISM'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("false\n", "")
    environment["TOKENIZERS_PARALLELISM"] = "no"  # the user's choice stays
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "no\n"
