"""Outputs whose terminal was closed, or whose connection is gone."""

import errno
import os
import termios


def discard_output_to_lost_terminal() -> None:
    """From now on, discard what is written to a standard output or error whose terminal is gone: every write would
    fail. Files and pipes stay as they are."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] != errno.EIO:  # no terminal
                continue
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
