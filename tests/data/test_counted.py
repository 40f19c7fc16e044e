"""Numbers of things in messages: singular and plural."""

import pytest

from dla_data.counted import counted


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [
        (0, "file", "0 files"),
        (1, "file", "1 file"),
        (1000, "file", "1,000 files"),
        (1, "other process", "1 other process"),
        (2, "other process", "2 other processes"),
    ],
)
def test_a_number_of_things(number: int, thing: str, text: str) -> None:
    assert counted(number, thing) == text
