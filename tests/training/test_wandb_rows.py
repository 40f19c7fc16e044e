"""Which rows W&B has, from their number alone."""

from dla_train.runs.wandb_rows import SentRows

TRAIN = [(step, "train") for step in range(1, 11)]
BOTH = sorted([*TRAIN, *((step, "validation") for step in range(1, 11))])


def test_without_a_note_rows_have_the_numbers_of_the_file():
    assert SentRows().at(0, BOTH) == SentRows()
    assert SentRows().at(3, BOTH) == SentRows(3, (2, "train"))
    assert SentRows(3, (2, "train")).later(BOTH)[0] == (2, "validation")


def test_numbers_count_from_the_note_when_the_rows_before_it_have_changed():
    noted = SentRows().at(12, BOTH)  # validated at every step up to 6
    assert noted == SentRows(12, (6, "validation"))
    assert noted.at(14, TRAIN) == SentRows(14, (8, "train"))
    assert noted.at(12, TRAIN) == noted


def test_rows_that_only_w_and_b_has_are_not_guessed():
    assert SentRows().at(15, TRAIN) == SentRows(10, (10, "train"))


def test_fewer_rows_than_noted_are_counted_from_the_first():
    assert SentRows(12, (6, "validation")).at(4, BOTH) == SentRows(4, (2, "validation"))
