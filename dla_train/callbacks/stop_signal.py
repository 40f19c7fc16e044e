"""Ctrl-C, SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (a cluster's warning that time is up): finish the step,
save, stop.

A second Ctrl-C stops at once.

Saving from inside a signal handler would deadlock, because the ranks are at different places then. So the handler only
notes the signal, and `Checkpointing` asks for it at the next step boundary, where all ranks agree.
"""

import os
import signal
from functools import partial
from types import FrameType

import lightning
from lightning.pytorch.callbacks import Callback

from dla_train.runs.lost_terminal import discard_output_to_lost_terminal

# If ranks received different signals, the first in this order counts: a warning is the most specific reason.
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted(Exception):
    """The run was told to stop.

    Attributes:
        signal_number: which signal; the exit code is 128 more, as in shells.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignal(Callback):
    """Notes signals, once model and checkpoint are loaded.

    Before that nothing can be lost: Ctrl-C raises KeyboardInterrupt and the other signals end the process, as usual.
    This replaces Lightning's own handlers, whose SIGTERM handler broadcasts at once and so deadlocks if the ranks are
    at different places. Lightning restores the previous handlers at the end.
    """

    def __init__(self) -> None:
        self._received: int | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Install our handlers when Lightning would install its own."""
        connector = trainer._signal_connector

        def register() -> None:
            connector._original_handlers = connector._get_current_signal_handlers()
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else it runs under nohup
                    signal.signal(number, self._note)

        connector.register_signal_handlers = register  # type: ignore[method-assign]

    def agreed(self, trainer: lightning.Trainer) -> int | None:
        """The signal that some rank has received, the same on all ranks, or None.

        To be called by all ranks, at a step boundary.
        """
        any_rank = partial(trainer.strategy.reduce_boolean_decision, all=False)
        received = self._received  # another signal may arrive while the ranks communicate
        if not any_rank(received is not None):
            return None
        return next(number for number in _SIGNALS if any_rank(received == number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise Interrupted(number)
        self._received = number
        # Not through logging: its locks may be held by the code that was interrupted.
        again = " (Ctrl-C again stops at once)" if number == signal.SIGINT else ""
        if number == signal.SIGHUP:
            discard_output_to_lost_terminal()
        os.write(2, f"\nstopping after this step{again}\n".encode())
