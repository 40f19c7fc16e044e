import random

import pytest


@pytest.fixture
def my_texts(tmp_path):
    """The folder that the pages call my-texts."""
    choose = random.Random(0).choice
    words = ["alpha", "beta", "gamma", "delta", "kappa", "omega", "state", "slot", "merge", "token"]
    folder = tmp_path / "my-texts"
    folder.mkdir()
    for number in range(40):
        lines = (" ".join(choose(words) for _ in range(9)) for _ in range(50))
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder
