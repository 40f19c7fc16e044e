"""How far a slow step has come: one line that is rewritten on a terminal, a few log lines anywhere else."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from dla_data.corpora import Document

_LOGGER = logging.getLogger("dla_data")
_TERMINAL_INTERVAL_S = 0.1
_LOG_INTERVAL_S = 15.0


class Progress:
    """Count bytes of text through one step; used as a context manager, whose end reports the whole.

    Args:
        what: the step in words, for example "encoding train".
        total_bytes: what 100 % is; None if unknown.
        behind: bytes that an earlier process has already done.
    """

    def __init__(self, what: str, total_bytes: int | None, behind: int = 0) -> None:
        self.what = what
        self.total_bytes = total_bytes
        self.done_bytes = behind
        self._behind = behind
        self._terminal = sys.stderr.isatty()
        self._began = self._reported = time.monotonic()

    def __enter__(self) -> "Progress":
        self._report()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._report(last=True)
        elif self._terminal:
            print(file=sys.stderr)  # leaves the line as it stood, so that the error starts on its own

    def watch(self, documents: Iterable[Document]) -> Iterator[str]:
        """Yield the texts of `documents`, counting each when the next one is asked for."""
        for document in documents:
            yield document.text
            self.advance(len(document.text.encode()))

    def advance(self, count: int) -> None:
        """Note that `count` more bytes are done."""
        self.done_bytes += count
        interval = _TERMINAL_INTERVAL_S if self._terminal else _LOG_INTERVAL_S
        if time.monotonic() - self._reported >= interval:
            self._report()

    def _report(self, last: bool = False) -> None:
        self._reported = time.monotonic()
        seconds = self._reported - self._began
        done = self.done_bytes - self._behind
        rate = done / 1e6 / max(seconds, 1e-9)
        if last:
            line = f"{self.what}: {done / 1e6:.1f} MB in {seconds:.1f} s, {rate:.1f} MB/s"
        elif self.total_bytes is None:
            line = f"{self.what}: {self.done_bytes / 1e6:.1f} MB, {rate:.1f} MB/s"
        elif done == 0:
            line = f"{self.what}: about {(self.total_bytes - self._behind) / 1e6:.1f} MB of text"
        else:
            share = min(self.done_bytes / max(self.total_bytes, 1), 1.0)
            left = max(self.total_bytes - self.done_bytes, 0) / 1e6 / rate
            line = f"{self.what}: {share:.0%} of {self.total_bytes / 1e6:.1f} MB, {rate:.1f} MB/s, {_clock(left)} left"
        if self._terminal:
            # \033[K clears what a longer line left behind.
            print(f"\r{line}\033[K", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            _LOGGER.info("%s", line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
