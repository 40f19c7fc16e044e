"""What is forked is a process like any other: tests rely on it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forking.process import ForkServer

ABOUT_ITSELF = """
import json, os, random, signal, sys, threading
import numpy
print(json.dumps({
    "pid": os.getpid(), "folder": os.getcwd(), "argv": sys.argv, "path": sys.path[0], "main": __name__,
    "cache": os.environ["DLA_TRAIN_CACHE"], "threads": threading.active_count(), "has torch": "torch" in sys.modules,
    "random": [random.random(), numpy.random.random()],
    "signals": [signal.getsignal(number) is signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGUSR1)],
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "lines": [stream.line_buffering for stream in (sys.stdout, sys.stderr)],
}))
"""
ENDS = """
import atexit, threading, time
atexit.register(print, "at exit")
def work():
    time.sleep(0.2)
    print("thread")
threading.Thread(target=work).start()
raise SystemExit(7)
"""
WAITS = "import time; print('here', flush=True); time.sleep(600)"


def _exists(pid: int) -> bool:
    """As something that runs, rather than what is left of it until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_finds_what_an_interpreter_of_its_own_would(fork_process, tmp_path, cache_directory):
    both = [fork_process("-c", ABOUT_ITSELF, "a", "b c") for _ in range(2)]
    found = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    for process, seen in zip(both, found, strict=True):
        assert process.returncode == 0
        assert seen["pid"] == process.pid
        assert seen["folder"] == str(tmp_path)
        assert (seen["argv"], seen["path"], seen["main"]) == (["-c", "a", "b c"], "", "__main__")
        assert (seen["cache"], seen["threads"], seen["has torch"]) == (str(cache_directory), 1, True)
        assert seen["signals"] == [True, True]
        assert seen["lines"] == [False, True]
    assert all(here != there for here, there in zip(found[0]["random"], found[1]["random"], strict=True))
    assert found[0]["files"] == found[1]["files"], "of the server and of each other they hold nothing"
    assert len(found[0]["files"]) < 8


def test_a_module_is_the_main_one(fork_process):
    process = fork_process("-m", "json.tool", "--compact")
    process.stdin.write('{"a": 1}')
    assert process.communicate(timeout=60) == ('{"a":1}\n', "")
    assert process.returncode == 0


def test_it_ends_as_an_interpreter_does(fork_process):
    process = fork_process("-c", ENDS)
    assert process.communicate(timeout=60) == ("thread\nat exit\n", "")
    assert process.returncode == 7
    process = fork_process("-c", "1 // 0")
    assert "ZeroDivisionError" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_ends_it_and_shows(fork_process, number):
    process = fork_process("-c", WAITS)
    assert process.stdout.readline() == "here\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.05)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == process.poll() == process.wait() == -number
    assert not _exists(process.pid)


def test_ctrl_c_reaches_it(fork_process):
    import_signal = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored where pytest is
    process = fork_process("-c", f"{import_signal}\ntry: {WAITS}\nexcept KeyboardInterrupt: print('interrupted')")
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("interrupted\n", "")


def test_its_output_may_be_a_file(fork_process, tmp_path):
    with (tmp_path / "said").open("w") as file:
        process = fork_process("-c", "import sys; print(1); print(2, file=sys.stderr)", stdout=file.fileno())
    assert process.communicate(timeout=60) == (None, "2\n")
    assert (tmp_path / "said").read_text() == "1\n"


def test_a_variable_that_an_import_may_read_needs_an_interpreter_of_its_own(fork_process, monkeypatch):
    with pytest.raises(ValueError, match="cannot have its own OTHER"):
        fork_process("-c", "", OTHER="1")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    with pytest.raises(ValueError, match="cannot have its own MALLOC_ARENA_MAX"):
        fork_process("-c", "")


def test_what_a_test_sets_for_later_is_there(fork_process, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    process = fork_process("-c", "import os; print(os.environ['WANDB_MODE'])")
    assert process.communicate(timeout=60) == ("offline\n", "")


def test_nothing_outlives_the_server_and_the_server_not_its_owner(tmp_path):
    owner = f"""
import os, time
from pathlib import Path
from tests.forking.process import ForkServer
server = ForkServer([], dict(os.environ), Path({str(tmp_path / "log")!r}))
process = server.start(["-c", {WAITS!r}], Path("."), {{}})
process.stdout.readline()
print(server._process.pid, process.pid, flush=True)
time.sleep(600)
"""
    repository = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", owner], cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        server, forked = map(int, process.stdout.readline().split())
        assert _exists(server)
        assert _exists(forked)
        process.kill()
    _wait_until(lambda: not _exists(server) and not _exists(forked))


def test_a_server_that_cannot_start_says_why(tmp_path):
    with ForkServer(["no_such_module"], os.environ, tmp_path / "log") as server:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
                server.start(["-c", ""], tmp_path, {})


def test_a_server_with_threads_is_refused(tmp_path):
    (tmp_path / "busy.py").write_text(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with ForkServer(["busy"], environment, tmp_path / "log") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(RuntimeError, match="must have one thread, but has python"):
            server.start(["-c", ""], tmp_path, {})
