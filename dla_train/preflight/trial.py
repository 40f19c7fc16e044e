"""A short run of the recipe, stopped by a signal, and its last steps once more from a checkpoint.

Both are starts of `dla-train fit` in processes of their own, as a user's would be. If a launcher has started this
process as one of several, each of them starts its own rank of both runs; the first one watches and stops them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dla_train.distributed.children import die_with_parent
from dla_train.distributed.placement import Placement
from dla_train.preflight.meeting import Meeting
from dla_train.runs.exit_code_file import VARIABLE
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import TRAIN, read_rows
from dla_train.runs.program import this_program

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
_GRACE_SECONDS = 20.0  # time for a rank to notice by itself that the first one has failed, and to say so
_STOPPED = 128 + signal.SIGUSR1
REFUSED = 2
"""Exit code of a run whose recipe, data or folder are wrong, and which has said so."""
_LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is run.

    Attributes:
        arguments: of `dla-train fit`, without run folder: the recipe and its settings.
        folder: where both runs have their folders.
        steps: how many are trained at least. planned_steps: of the recipe, after which a run ends by itself.
        placement: of this process.
    """

    arguments: Sequence[str]
    folder: Path
    steps: int
    planned_steps: int
    placement: Placement

    @property
    def first(self) -> RunFolder:
        """Of the run that is stopped."""
        return RunFolder(self.folder / "first")

    @property
    def again(self) -> RunFolder:
        """Of the run that begins at a checkpoint of the first."""
        return RunFolder(self.folder / "again")

    @property
    def saved_step(self) -> int:
        """The step of that checkpoint: a little more than half of all, so that the next one comes after the last."""
        return self.steps // 2 + 1

    @property
    def checkpoint(self) -> Path:
        """Where it appears."""
        return self.first.checkpoints / f"step-{self.saved_step:08d}"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one of the runs went.

    Attributes:
        rows: of its metrics. code: of its process. stop_seconds: from the signal to its end; None if it got none.
    """

    rows: list[dict[str, Any]]
    code: int
    stop_seconds: float | None

    @property
    def ended_well(self) -> bool:
        """Whether it trained until it was stopped, or to its end."""
        return self.code in (0, _STOPPED)


def run_trial(trial: Trial, say: Callable[[str], None]) -> tuple[Ran, Ran | None]:
    """Both runs, each announced by `say`; the second is None if the first went wrong or left no checkpoint."""
    say(f"preflight: {trial.steps} steps, then a signal")
    first = _start(trial, trial.first, ["--resume=never"], port_offset=1)
    ran = _until(first, trial, trial.first, lambda: _trained(trial.first, trial.steps) and trial.checkpoint.is_dir())
    if not ran.ended_well or not trial.checkpoint.is_dir():
        return ran, None
    last = max(row["step"] for row in ran.rows if row["split"] == TRAIN)
    say(f"preflight: the steps after step {trial.saved_step} again, from its checkpoint")
    again = _start(trial, trial.again, [f"--resume={trial.checkpoint.absolute()}"], port_offset=2)
    return ran, _until(again, trial, trial.again, lambda: _trained(trial.again, last))


def accompany(trial: Trial, meeting: Meeting) -> int:
    """The same on a process that is not the first: its rank of both runs; returns an exit code.

    A run that the first process has no part in, because its own has failed or was not begun, is not waited for.

    Raises:
        FirstHasEnded: nobody waits for this process any more.
    """
    for folder, resume, offset in ((trial.first, "never", 1), (trial.again, str(trial.checkpoint.absolute()), 2)):
        process = _start(trial, folder, [f"--resume={resume}"], port_offset=offset)
        try:
            code = _until_over(process, meeting)
        except BaseException:
            _end(process)
            raise
        if code is None:
            _end(process)
            return 0
        if code not in (0, _STOPPED):
            return code
    return 0


def _until_over(process: subprocess.Popen[bytes], meeting: Meeting) -> int | None:
    """The run's exit code; None if it has not ended by itself some time after the first process has done its part."""
    deadline = None
    while (code := process.poll()) is None:
        if deadline is None and meeting.are_runs_over():
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
    return code


def how_it_ended(code: int) -> str:
    """The exit code of a run that went wrong, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    out_of_memory = ", as the system does where main memory runs out (dmesg says so)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{out_of_memory}"


def _trained(folder: RunFolder, steps: int) -> bool:
    rows = read_rows(folder.metrics)
    return any(row["step"] >= steps for row in rows if row["split"] == TRAIN)


def _start(trial: Trial, folder: RunFolder, options: list[str], *, port_offset: int) -> subprocess.Popen[bytes]:
    """Start `dla-train fit`. All that it says goes where messages go."""
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}  # not that of the job's run
    if trial.placement.launcher != "dla-train":
        # Each run meets at a place of its own: the processes of the one before may not all have left theirs.
        port = trial.placement.port
        port += port_offset if port + port_offset <= _LAST_PORT else -port_offset
        variables |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return subprocess.Popen(
        [
            *this_program(),
            "fit",
            *trial.arguments,
            f"checkpoint.every={trial.saved_step}",
            "checkpoint.keep_last=1000",  # a run that is stopped late must not remove the one to go on from
            f"--run-dir={folder}",
            *options,
        ],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )


def _until(process: subprocess.Popen[bytes], trial: Trial, folder: RunFolder, is_enough: Callable[[], bool]) -> Ran:
    """Wait until it is enough, then stop the run as a cluster would; or until it ends.

    A run that has trained all its steps is left to end by itself: it does not wait for signals any more.
    """
    stop_seconds = None
    try:
        while process.poll() is None and not is_enough():
            time.sleep(_POLL_SECONDS)
        if process.poll() is None and not _trained(folder, trial.planned_steps):
            begin = time.monotonic()
            process.send_signal(signal.SIGUSR1)
            process.wait()
            stop_seconds = time.monotonic() - begin
        code = process.wait()
    except BaseException:  # Ctrl-C, or another signal
        _end(process)
        raise
    if stop_seconds is not None and code == -signal.SIGUSR1:  # which came just after the last step
        code, stop_seconds = 0, None
    return Ran(rows=read_rows(folder.metrics), code=code, stop_seconds=stop_seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a run end that nobody waits for any more."""
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
