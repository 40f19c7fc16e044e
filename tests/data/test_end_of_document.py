"""No text ends its own document: tokenizers that would let it are refused, and so are ids that do it all the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dla_data.end_of_document import end_of_document_id
from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.streams.parts import StreamParts
from dla_data.streams.reader_text import ReaderText
from dla_data.streams.token_stream import StreamState, TokenStream
from dla_data.token_file import TokenFile
from dla_data.tokenizer import END_OF_DOCUMENT, load_tokenizer, save_tokenizer, train_tokenizer


def loaded(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    save_tokenizer(tokenizer, path)
    return load_tokenizer(path)


def by_words(vocabulary: dict[str, int], unknown: str | None = "<unk>") -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_DOCUMENT])
    return tokenizer


def test_a_tokenizer_without_one_is_refused() -> None:
    with pytest.raises(DataError, match=r"no token <\|endoftext\|>"):
        end_of_document_id(Tokenizer(models.BPE()))


def test_one_that_is_not_special_is_refused(tmp_path: Path) -> None:
    tree = json.loads(train_tokenizer([""], 257).to_str())
    tree["added_tokens"][0]["special"] = False
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"<\|endoftext\|> is not a special token: .* Set \"special\": true"):
        end_of_document_id(load_tokenizer(tmp_path / "t.json"))


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), (END_OF_DOCUMENT, -1.0), ("▁", -2.0), *((letter, -3.0) for letter in "ab<|>endoftx")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([END_OF_DOCUMENT])
    return tokenizer


def bpe_of_whole_words() -> Tokenizer:
    tree = json.loads(train_tokenizer([""], 257).to_str())
    tree["model"]["ignore_merges"] = True
    tree["pre_tokenizer"]["use_regex"] = False
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize(
    "tokenizer",
    [
        by_words({END_OF_DOCUMENT: 0, "<unk>": 1}),
        by_words({END_OF_DOCUMENT: 0, "C": 1}, unknown=None),
        unigram(),
        bpe_of_whole_words(),
    ],
    ids=["words", "words without unknown", "unigram", "BPE of whole words"],
)
def test_a_model_that_makes_it_of_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model has them in its vocabulary\. Use byte-level BPE, or .*add_special_to"):
        end_of_document_id(loaded(tokenizer, tmp_path / "t.json"))


def test_a_model_without_it_is_as_good_as_any(tmp_path: Path) -> None:
    """Also one that knows nothing of the letters that are tried."""
    assert end_of_document_id(loaded(by_words({"<unk>": 0, "hello": 1}), tmp_path / "t.json")) == 2
    assert end_of_document_id(loaded(by_words({"ACGT": 0}, unknown=None), tmp_path / "t.json")) == 1


def test_a_document_that_holds_it_is_not_written(write_tokens: Callable[..., TokenFile], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"document 1 for .*tokens holds token 0, which ends documents, in its own text"
    ):
        write_tokens([[1, 2], [3, 0, 4]])
    assert not (tmp_path / "tokens").exists()


def test_a_document_that_holds_it_is_not_streamed(tmp_path: Path) -> None:
    """Here, an unknown word becomes the end of a document; what is tried beforehand cannot show that."""
    (tmp_path / "text.txt").write_text("hello strange hello")
    known = ["hello", "a", "b", "<|", "endoftext", "|>", END_OF_DOCUMENT]
    tokenizer = by_words({word: number for number, word in enumerate(known)}, unknown=END_OF_DOCUMENT)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = ReaderText("mine", Source(path=str(tmp_path / "text.txt")).readers(), streams=1)
    stream = TokenStream(text, StreamParts(1, 1, seed=0), 0, tokenizer, StreamState())
    with pytest.raises(DataError, match="mine: a document holds token 6, which ends documents"):
        stream.take(4)
