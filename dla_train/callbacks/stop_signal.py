"""Ctrl-C, SIGTERM and SIGUSR1 (a cluster's warning that time is up): finish the step, save, stop.

A second Ctrl-C stops at once.

Saving from inside a signal handler is how runs deadlock (the ranks are at different places then); the handler only
takes note, and `Checkpointing` asks at the next step boundary, where all ranks agree.
"""

import os
import signal
from functools import partial
from types import FrameType

import lightning
from lightning.pytorch.callbacks import Callback

# Where ranks were told different things, the first of these counts: a warning says most about why.
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was told to stop.

    Attributes:
        signal_number: which signal; the exit code is 128 more, as shells have it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignal(Callback):
    """Takes note of signals once model and checkpoint are there.

    Before that nothing can be lost: Ctrl-C raises KeyboardInterrupt, the others end the process, as everywhere. This
    takes the place of Lightning's own handlers (whose SIGTERM broadcasts wherever it lands, which deadlocks where the
    ranks are at different places); Lightning puts back what was there before.
    """

    def __init__(self) -> None:
        self._received: int | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals over where Lightning would."""
        connector = trainer._signal_connector

        def register() -> None:
            connector._original_handlers = connector._get_current_signal_handlers()
            for number in _SIGNALS:
                signal.signal(number, self._note)

        connector.register_signal_handlers = register  # type: ignore[method-assign]

    def agreed(self, trainer: lightning.Trainer) -> int | None:
        """The signal that any rank has received, the same for all, or None.

        To be called by all ranks, at a step boundary.
        """
        any_rank = partial(trainer.strategy.reduce_boolean_decision, all=False)
        received = self._received  # another signal may come while the ranks talk
        if not any_rank(received is not None):
            return None
        return next(number for number in _SIGNALS if any_rank(received == number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise Interrupted(number)
        self._received = number
        # Not through logging: its locks may be held by the code that was interrupted.
        again = " (Ctrl-C again stops at once)" if number == signal.SIGINT else ""
        os.write(2, f"\nstopping after this step{again}\n".encode())
