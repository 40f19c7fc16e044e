"""The signals that end a preflight, as an exception: it then ends what it has started and removes what it has made."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dla_train.errors import RelayedError
from dla_train.runs.lost_terminal import discard_output_to_lost_terminal

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came. Not an Exception, so that nothing takes it for a failure of what it interrupts.

    Attributes:
        signal_number: which one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, SIGTERM, SIGUSR1 and SIGHUP raise `Stopped`, once; Ctrl-C does as ever.

    Raises:
        RelayedError: the block was left for one of them, which has been said; with the exit code of shells.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopped
        if is_stopped:  # launchers send it again and again
            return
        is_stopped = True
        if number == signal.SIGHUP:
            discard_output_to_lost_terminal()
        os.write(2, f"\ndla-train: the preflight is stopped by {signal.Signals(number).name}\n".encode())
        raise Stopped(number)

    is_stopped = False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as by nohup
                signal.signal(number, stop)
        yield
    except Stopped as stopped:
        raise RelayedError(128 + stopped.signal_number) from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
