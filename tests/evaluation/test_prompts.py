"""Prompts and texts as files give them."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dla_train.evaluation.prompts import read_prompts, read_text


def test_the_mark_that_some_editors_begin_a_file_with_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffimport os\r\n\r\nclass".encode())
    assert read_prompts(path) == ["import os", "class"]
    assert read_text(path).startswith("import")


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert read_prompts(Path("-")) == ["one", "two"]
