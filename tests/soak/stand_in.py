"""What a run takes for its interpreter when it starts other ranks, so that those are heard, too."""

import shlex
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("recorded_fit.py")


def write_stand_in(path: Path) -> None:
    """Make `path` a program that is called as `python [-P] -m dla_train ARGUMENTS` and runs `recorded_fit` instead."""
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(PROGRAM))}"
    path.write_text(f'#!/bin/sh\nuntil [ "$1" = dla_train ]; do shift; done; shift\nexec {program} "$@"\n')
    path.chmod(0o755)
