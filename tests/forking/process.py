"""Processes that `tests.forking.server` forks, for tests: used like those of `subprocess.Popen`."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Variables that are read when they are needed, which a test may set as it likes.
_LATE = ("DLA_TRAIN_", "DS_ACCELERATOR", "NETRC", "WANDB_")
# Some that libc, the interpreter or an import reads, all of which is over when a process is forked. Whole names where
# libraries add others of the same family, such as HF_XET_HIGH_PERFORMANCE, to the environment of pytest.
_EARLY = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "LANG", "LC_", "LD_", "MALLOC_", "MKL_NUM_", "OMP_", "PYTHON",
    "TRITON_INTERPRET",
)  # fmt: skip
_SAID_BY_TRITON = "nanobind: leaked"
"""How 3.9 begins the last that an interpreter says if modules of Triton outlive it, as they do in a fork."""
_SERVER = Path(__file__).with_name("server.py")


class ForkedProcess:
    """A process that was forked; what it has of `subprocess.Popen` means the same.

    Attributes:
        args: those of `python`.
        pid: its process id.
        stdin, stdout, stderr: this end of its pipes; None where it got something else.
        returncode: None until `poll`, `wait` or `communicate` found that it has ended; -N if signal N ended it.
    """

    def __init__(self, server: socket.socket, program: dict[str, object], log: Path, stdout: int, stderr: int) -> None:
        self.args = program["arguments"]
        self.returncode: int | None = None
        self._log = log
        theirs: list[int] = []
        stdin, self.stdin = _pipe("w", theirs)
        pipes: list[IO[str] | None] = []
        streams = [stdin]
        for wanted in (stdout, stderr):
            if wanted == subprocess.PIPE:
                end, pipe = _pipe("r", theirs)
            else:
                end, pipe = wanted, None
            streams.append(end)
            pipes.append(pipe)
        self.stdout, self.stderr = pipes
        self._reported, asked = socket.socketpair()
        try:
            socket.send_fds(server, [b"+"], [asked.fileno(), *streams])
            self._reported.sendall(json.dumps(program).encode() + b"\n")
        except ConnectionError:
            raise self._server_is_gone() from None
        finally:
            asked.close()
            for end in theirs:
                os.close(end)
        self._lines = self._reported.makefile("rb")
        self.pid = self._next_number()
        self._readers: list[_Reader] = []

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as there is one; after `timeout` seconds, TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.args), timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Close its input, read all that it writes, and wait; may be called again after TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            self.stdin.close()
            self._readers = [_Reader(pipe) for pipe in (self.stdout, self.stderr)]
        for reader in self._readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(str(self.args), timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        out, err = (reader.text for reader in self._readers)
        return out, None if err is None else err.partition(_SAID_BY_TRITON)[0]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End it if it still runs, and let go of the pipes."""
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr, self._lines, self._reported):
            if file is not None:
                file.close()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._reported], [], [], timeout)[0]:
            self.returncode = self._next_number()
        return self.returncode

    def _next_number(self) -> int:
        try:
            line = self._lines.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise self._server_is_gone()
        return int(line)

    def _server_is_gone(self) -> RuntimeError:
        return RuntimeError(f"the fork server has ended:\n{self._log.read_text()}")


class _Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, pipe: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self.text: str | None = None
        self.start()

    def run(self) -> None:
        if self._pipe is not None:
            self.text = self._pipe.read()
            self._pipe.close()


def _pipe(mode: str, theirs: list[int]) -> tuple[int, IO[str]]:
    """The other process's end, which is also added to `theirs`, and the end for this one, to read or write."""
    read, write = os.pipe()
    end, own = (write, read) if mode == "r" else (read, write)
    theirs.append(end)
    return end, open(own, mode, encoding="utf-8")


class ForkServer:
    """The server's process; a context manager, at whose end everything that it forked is killed.

    Args:
        modules: to import before it forks.
        environment: as pytest was started, before libraries and tests changed it.
        log: a file for what the server itself says.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._at_start = dict(environment)
        # As `start_process` and `dla_train.cli.main` set them.
        self._environment = {"OMP_WAIT_POLICY": "PASSIVE", **environment, "OMP_NUM_THREADS": "1"}
        self._log = log
        self._control, theirs = socket.socketpair()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, _SERVER, str(theirs.fileno()), *modules],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for pytest, which ends this
            )
        theirs.close()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.wait()

    def start(
        self,
        arguments: Sequence[object],
        folder: Path,
        variables: Mapping[str, str],
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> ForkedProcess:
        """Run `python ARGUMENTS`, which begin with -m MODULE or -c CODE, in `folder`.

        Its environment is the server's, with what the test has set of the variables that are read late, and with
        `variables`.

        Raises:
            ValueError: if the test, or `variables`, sets one that may act before the process is forked.
        """
        program = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "environment": {**self._environment_now(), **variables},
        }
        changed = [name for name in variables if not name.startswith(_LATE)]
        changed += [
            name
            for name in {*os.environ, *self._at_start}
            if name.startswith(_EARLY)
            and os.environ.get(name) not in (self._at_start.get(name), self._environment.get(name))
        ]
        if changed:
            raise ValueError(
                f"a forked process cannot have its own {', '.join(sorted(changed))}: that may act before it is forked. "
                "Start a real process."
            )
        return ForkedProcess(self._control, program, self._log, stdout, stderr)

    def _environment_now(self) -> dict[str, str]:
        """What libraries have added to this process's environment is left out: it would depend on what ran before."""
        early = {name: value for name, value in self._environment.items() if not name.startswith(_LATE)}
        return early | {name: value for name, value in os.environ.items() if name.startswith(_LATE)}
