"""The validation part depends on names alone, is never empty, and together with the training part is the whole."""

import pytest

from dla_data.corpora import Document, StdlibCorpus
from dla_data.errors import DataError
from dla_data.split import VALIDATION_SHARE, Split, name_position

MANY = [Document(f"{number}.txt", f"text {number}") for number in range(2000)]


def names(documents: list[Document]) -> list[str]:
    return [document.name for document in documents]


def test_the_parts_are_the_whole_in_order() -> None:
    split = Split.of(names(MANY))
    train, validation = list(split.train(MANY)), list(split.validation(MANY))
    assert sorted(train + validation) == sorted(MANY)
    assert [document for document in MANY if document in set(train)] == train
    assert 0.8 * VALIDATION_SHARE < len(validation) / len(MANY) < 1.2 * VALIDATION_SHARE


def test_a_growing_corpus_moves_no_document_across() -> None:
    small, large = Split.of(names(MANY[:1000])), Split.of(names(MANY))
    assert small.validation_names == large.validation_names & set(names(MANY[:1000]))


def test_positions_hold_on_every_platform() -> None:
    # A change here makes every validation loss ever reported incomparable.
    assert name_position("argparse.py") == pytest.approx(0.16400360323059646, abs=1e-15)
    assert name_position("été\udcff.txt") == name_position("été\udcff.txt")  # names need not be valid unicode


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_documents_still_give_both_parts(count: int) -> None:
    for first in range(0, 100, count):
        documents = MANY[first : first + count]
        split = Split.of(names(documents))
        assert list(split.train(documents))
        assert list(split.validation(documents))


def test_a_single_document_gives_its_last_lines() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    split = Split.of(["book.txt"])
    (train,), (validation,) = split.train([Document("book.txt", text)]), split.validation([Document("book.txt", text)])
    assert train.text + validation.text == text
    assert validation.text.startswith("line ")
    assert 0.04 * len(text) < len(validation.text) <= 0.0501 * len(text)


@pytest.mark.parametrize("text", ["x" * 1000, "x" * 990 + "\n" + "y" * 9, "x" * 999 + "\n"])
def test_a_single_document_without_a_fitting_line_is_cut_all_the_same(text: str) -> None:
    split = Split.of(["book.txt"])
    (validation,) = split.validation([Document("book.txt", text)])
    assert validation.text == text[950:]


def test_no_documents() -> None:
    with pytest.raises(DataError, match="no documents"):
        Split.of([])


def test_the_standard_library_gives_a_usual_share() -> None:
    documents = list(StdlibCorpus().documents())
    validation = list(Split.of(names(documents)).validation(documents))
    share = sum(len(document.text) for document in validation) / sum(len(document.text) for document in documents)
    assert 0.03 < share < 0.06
