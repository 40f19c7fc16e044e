"""Slow steps show a line that is rewritten on a terminal, and a few log lines anywhere else."""

import logging
import sys

import pytest

from dla_data import progress
from dla_data.corpora import Document
from dla_data.progress import Progress

DOCUMENTS = [Document(str(number), "é" * 500_000) for number in range(4)]  # 1 MB each in UTF-8


def test_log_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, logger="dla_data")
    with Progress("encoding", 4_000_000) as step:
        assert [len(text) for text in step.watch(DOCUMENTS)] == [500_000] * 4
    first, last = [record.getMessage() for record in caplog.records]
    assert first == "encoding: about 4.0 MB of text"
    assert last.startswith("encoding: 4.0 MB in ")
    assert last.endswith(" MB/s")
    assert capsys.readouterr().err == ""


def test_long_steps_log_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, logger="dla_data")
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.0)
    with Progress("encoding", 4_000_000) as step:
        list(step.watch(DOCUMENTS))
    lines = [record.getMessage().split(",")[0] for record in caplog.records[1:-1]]
    assert lines == [f"encoding: {share} % of 4.0 MB".replace(" %", "%") for share in (25, 50, 75, 100)]


def test_one_rewritten_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="dla_data")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_TERMINAL_INTERVAL_S", 0.0)
    with Progress("encoding", 4_000_000) as step:
        list(step.watch(DOCUMENTS))
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.endswith(" MB/s\033[K\n")
    assert "\rencoding: 50% of 4.0 MB, " in written
    assert not caplog.records


def test_an_error_begins_on_its_own_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(RuntimeError), Progress("encoding", 4_000_000):
        raise RuntimeError
    assert capsys.readouterr().err == "\rencoding: about 4.0 MB of text\033[K\n"
