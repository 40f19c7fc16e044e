"""Prompts as users give them: on the command line, on standard input, or one per line in a file."""

from __future__ import annotations

import sys
from pathlib import Path

from dla_train.errors import UsageError

STANDARD_INPUT = "-"


def read_prompt(text: str) -> str:
    """The prompt `text` itself, or all of standard input if it is `-`.

    Raises:
        UsageError: standard input is not UTF-8.
    """
    return _decoded(sys.stdin.buffer.read(), "standard input") if text == STANDARD_INPUT else text


def read_text(path: Path) -> str:
    """The text of a whole file, or of standard input if it is `-`.

    Raises:
        UsageError: it cannot be read or is not UTF-8.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise UsageError(f"cannot read the text {path}: {error.strerror}. Give a text file.") from error
    return _decoded(content, str(path))


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, or of standard input if it is `-`, that are not blank; a form feed or U+2028 does not end a
    line.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or has no such line.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the prompts {path}: {error.strerror}. Give a text file, one prompt a line."
        ) from error
    lines = [line.removesuffix("\r") for line in _decoded(content, str(path)).split("\n")]
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} has no prompts: every line is blank. Give a text file, one prompt a line.")
    return prompts


def _content(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else path.read_bytes()


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")  # some editors begin a file with it
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start} (line {line}). Convert "
            "it, for example with iconv -t UTF-8."
        ) from error
