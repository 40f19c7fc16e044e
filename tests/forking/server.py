"""A process that has imported what a run needs, and forks whenever a test wants a process: the import takes 13 s, the
fork a hundredth of one.

It runs as `python server.py FD MODULE...`, where FD is a Unix socket and the modules are imported beforehand. On FD,
`tests.forking.process.ForkServer` sends four file descriptors for each process: a socket for that process alone, and
its stdin, stdout and stderr. From the former the server reads a `Program` as JSON, and answers with two lines: the
process id, and the exit code once there is one. When FD ends, because whoever started the server is done or dead, all
that still runs is killed.

What is forked ends as any interpreter does, with `atexit` and the threads that are waited for, because it returns
through this module's last line instead of leaving by `os._exit`.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Program:
    """What a forked process is to be.

    Attributes:
        arguments: those of `python`: `-m MODULE ...` or `-c CODE ...`.
        folder: where it runs.
        environment: all of it.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]

    def run(self) -> None:
        """Be that program: it finds what it would find had the interpreter been started for it."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        # What the interpreter began with: a library may have wrapped it (numba 0.61 with colorama).
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        _see_anew(sys.stdin, 0, "rb")
        _see_anew(sys.stdout, 1, "wb")
        _see_anew(sys.stderr, 2, "wb")
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # as at its import; Python's own generator is seeded anew in each fork
        option, what, *rest = self.arguments
        sys.orig_argv = [sys.executable, *self.arguments]
        sys.argv = [option, *rest]
        if option == "-m":
            sys.path[0] = os.getcwd()
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = ""
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)


class Server:
    """Forks on demand; it has one thread, and no handlers of signals, so what it forks begins as if it were new."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: process id, and whom to tell how it ended

    def serve(self) -> Program | None:
        """Returns what to run in each process that it forks, and None in its own at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._running:
                    self._report(key.fd)
                    continue
                _, received, _, _ = socket.recv_fds(self._control, 1, 4)
                if not received:
                    self._kill_all()
                    return None
                program = self._fork(socket.socket(fileno=received[0]), received[1:])
                if program is not None:
                    return program

    def _fork(self, asker: socket.socket, streams: list[int]) -> Program | None:
        """In the new process, what it is to run."""
        program = Program(**json.loads(asker.makefile("rb").readline()))
        pid = os.fork()
        if pid == 0:
            for own, stream in enumerate(streams):
                os.dup2(stream, own)
            for number in streams:
                os.close(number)
            asker.close()
            self._forget()
            return program
        for number in streams:
            os.close(number)
        descriptor = os.pidfd_open(pid)
        self._running[descriptor] = pid, asker
        self._selector.register(descriptor, selectors.EVENT_READ)
        _tell(asker, pid)
        return None

    def _forget(self) -> None:
        """A forked process holds nothing of the server, nor of others that it forked: their pipes end with them."""
        self._selector.close()
        self._control.close()
        for descriptor, (_, asker) in self._running.items():
            os.close(descriptor)
            asker.close()

    def _report(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        pid, asker = self._running.pop(descriptor)
        os.close(descriptor)
        _tell(asker, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        asker.close()

    def _kill_all(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)


def _see_anew(stream: Any, number: int, mode: str) -> None:
    """The object stays, as others hold it: what is known of the file, such as whether it is a terminal, does not."""
    file = open(number, mode, closefd=False)  # noqa: SIM115
    is_by_line = stream is sys.stderr or file.isatty()
    stream.__init__(file, encoding=stream.encoding, errors=stream.errors, line_buffering=is_by_line)


def _tell(asker: socket.socket, number: int) -> None:
    """The test may have gone without waiting for its process."""
    with contextlib.suppress(BrokenPipeError):
        asker.sendall(b"%d\n" % number)


def _require_one_thread() -> None:
    """Others would be missing in what is forked, along with whatever they hold; jemalloc, pyarrow's, knows of forks."""
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) - threads.count("jemalloc_bg_thd") != 1:
        raise RuntimeError(f"the fork server must have one thread, but has {', '.join(threads)}")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    _require_one_thread()
    gc.collect()
    gc.freeze()  # so that a collection in what is forked does not copy all of this
    if (wanted := Server(socket.socket(fileno=int(sys.argv[1]))).serve()) is not None:
        wanted.run()
