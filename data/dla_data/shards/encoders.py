"""Processes that encode text side by side; what comes back is in the order of what went in.

Every process has a pipe of its own, and batch i goes to process i modulo their number, so the result does not depend on
which process is faster. A process ends when its pipe is closed, and so also when its parent was killed.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.tokenizer import Encoded, pieces_to_encode

# A fifth of a second's work: sending it costs little in comparison, and the other processes wait little for the last.
_BATCH_CHARACTERS = 250_000
# The one in work, and a reserve for the time in which another process is slow.
_BATCHES_AHEAD = 4


class _Batch(NamedTuple):
    """Pieces of texts for one process, and for each whether it is the last of its text."""

    pieces: list[str]
    is_last: list[bool]


class _Result(NamedTuple):
    """ids: of all pieces in a row. lengths: tokens per piece. text_bytes: in UTF-8, per piece."""

    ids: npt.NDArray[np.uint32]
    lengths: list[int]
    text_bytes: list[int]


class Encoders:
    """`workers` processes that encode; a context manager, and the processes end with its block.

    They are spawned, not forked: the threads of `tokenizers` do not survive a fork.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int) -> None:
        if workers < 1:
            raise DataError(f"{workers} workers asked for: there must be at least 1.")
        self._tokenizer = tokenizer
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        start = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # now, because starting it unblocks signals
        for number in range(workers):
            ours, theirs = start.Pipe()
            process = start.Process(
                target=_serve, args=(theirs, tokenizer.to_str()), name=f"encoder-{number}", daemon=True
            )
            # The process starts with Ctrl-C blocked and later ignores it, so that there is no traceback during imports.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            theirs.close()  # or this process would keep the pipe open after the other has died
            self._processes.append((process, ours))

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, pipe in self._processes:
            pipe.close()
        for process, _ in self._processes:
            process.terminate()  # it may be in the middle of a batch that is no longer needed
            process.join()

    def encode(self, texts: Iterable[str]) -> Iterator[Encoded]:
        """Yield the texts as tokens, in order; reads a million characters per process ahead.

        Raises:
            DataError: a process died.
        """
        waiting: deque[tuple[int, _Batch]] = deque()
        parts: list[npt.NDArray[np.uint32]] = []
        text_bytes = 0
        batches = _batches(pieces_to_encode(self._tokenizer, texts))
        for number in count():
            if (batch := next(batches, None)) is not None:
                self._send(number % len(self._processes), batch)
                waiting.append((number % len(self._processes), batch))
                if len(waiting) < _BATCHES_AHEAD * len(self._processes):
                    continue
            elif not waiting:
                return
            worker, oldest = waiting.popleft()
            result = self._receive(worker)
            begin = 0
            for length, size, is_last in zip(result.lengths, result.text_bytes, oldest.is_last, strict=True):
                parts.append(result.ids[begin : begin + length])
                begin += length
                text_bytes += size
                if is_last:
                    yield Encoded(np.concatenate(parts), text_bytes)
                    parts, text_bytes = [], 0

    def _send(self, worker: int, batch: _Batch) -> None:
        try:
            self._processes[worker][1].send(batch.pieces)
        except OSError as error:
            raise self._death(worker) from error

    def _receive(self, worker: int) -> _Result:
        try:
            result = self._processes[worker][1].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if isinstance(result, str):
            raise DataError(f"the tokenizer failed: {result}. Is its file whole?")
        return result

    def _death(self, worker: int) -> DataError:
        process = self._processes[worker][0]
        process.join(timeout=5)
        return DataError(
            f"{process.name}, a process that encodes text, ended with exit code {process.exitcode} "
            "(-9: killed, often for lack of memory). Run the same command again to go on, perhaps with fewer workers."
        )


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[_Batch]:
    batch, characters = _Batch([], []), 0
    for piece, is_last in pieces:
        batch.pieces.append(piece)
        batch.is_last.append(is_last)
        characters += len(piece)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = _Batch([], []), 0
    if batch.pieces:
        yield batch


def _serve(pipe: Connection, tokenizer_json: str) -> None:
    """The life of one process: encode what comes until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal; the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each of these processes is one core's work
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # not part of the JSON
    tasks: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    # A thread receives everything at once: if the parent waited for us to take a batch while we waited for it to take a
    # result, both would wait forever.
    threading.Thread(target=_collect, args=(pipe, tasks), daemon=True).start()
    while True:
        pieces = tasks.get()
        try:
            answer = _encoded(tokenizer, pieces)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            pipe.send(answer)
        except OSError:
            return


def _collect(pipe: Connection, tasks: "queue.SimpleQueue[list[str]]") -> None:
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone or has closed the pipe: nobody reads what is still being encoded


def _encoded(tokenizer: Tokenizer, pieces: list[str]) -> _Result:
    encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    ids = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
    return _Result(np.concatenate(ids), [part.size for part in ids], [len(piece.encode()) for piece in pieces])
