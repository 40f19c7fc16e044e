"""A pytest plugin for GPU machines with limited time: stops in time, and continues where the last call stopped.

`make test-gpu` loads it. A test that passed is not run again until the kernels, the tests, PyTorch, Triton or the GPU
change; `--anew` runs all. A call that ends before its last test fails with pytest's code for an interrupted run. A test
after which the GPU accepts no more work (because of an illegal address, for example) ends the call, as all further
tests would fail. Tests that have failed come last in the next call. With pytest-xdist (`-n`), kernels compile in
parallel, which is what takes the time; the main process keeps the record.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_WATCHED = ("kernels/dla_kernels", "tests/kernels")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu progress")
    group.addoption("--minutes", type=float, default=8.0, help="begin no test after this many minutes (8)")
    group.addoption("--anew", action="store_true", help="forget which tests have passed")


def pytest_configure(config: pytest.Config) -> None:
    progress = _Progress(
        Path(config.rootpath) / ".pytest_cache" / "gpu-progress.json",
        minutes=config.getoption("--minutes"),
        is_anew=config.getoption("--anew"),
        has_workers=bool(config.getoption("numprocesses", default=None)),
        is_worker=hasattr(config, "workerinput"),
    )
    config.pluginmanager.register(progress, "gpu-progress")


class _Progress:
    """Leaves out tests that have passed, records what passes, and stops in time."""

    def __init__(self, path: Path, *, minutes: float, is_anew: bool, has_workers: bool, is_worker: bool) -> None:
        self.path = path
        self.has_workers = has_workers
        self.is_worker = is_worker
        self.minutes = minutes
        self.ends = time.monotonic() + 60 * minutes
        self.key = _key()
        self.passed, self.failed = (set(), set()) if is_anew else _read(path, self.key)
        self.left_out = 0

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self.passed]
        config.hook.pytest_deselected(items=done)
        items[:] = sorted(
            (item for item in items if item.nodeid not in self.passed), key=lambda item: item.nodeid in self.failed
        )
        self.left_out = len(done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.is_worker or not (report.failed or (report.when == "call" and report.passed)):
            return
        (self.failed if report.failed else self.passed).add(report.nodeid)
        self.path.parent.mkdir(exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        notes = {"key": self.key, "passed": sorted(self.passed), "failed": sorted(self.failed - self.passed)}
        unfinished.write_text(json.dumps(notes), encoding="utf-8")
        os.replace(unfinished, self.path)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        result = yield
        if nextitem is not None and time.monotonic() > self.ends:
            item.session.shouldstop = f"{self.minutes:g} minutes are over; the same command goes on from here"
        if nextitem is not None and _gpu_is_broken():
            item.session.shouldstop = (
                f"the GPU takes no more work after {item.nodeid}; the same command goes on from here"
            )
        return result

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # with workers, it is the workers that left tests out
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and (self.left_out or (self.has_workers and self.passed)):
            session.exitstatus = pytest.ExitCode.OK

    def pytest_report_header(self) -> str:
        return f"gpu progress: {len(self.passed)} tests passed before (--anew runs them again)"


def _key() -> str:
    """A hash of everything that a result depends on."""
    digest = hashlib.sha256(f"{version('torch')} {version('triton')}".encode())
    if Path("/dev/nvidiactl").exists():
        import torch  # takes seconds, and this plugin's own tests start many a process

        digest.update(torch.cuda.get_device_name().encode())
    for folder in _WATCHED:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _gpu_is_broken() -> bool:
    """Whether the GPU fails all further work of this process, as after an illegal address."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _read(path: Path, key: str) -> tuple[set[str], set[str]]:
    """The tests that have passed, and those that have failed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return set(), set()
    return (set(found["passed"]), set(found["failed"])) if found["key"] == key else (set(), set())
