"""Jobs that train, through the real command line, and what a test wants to know of them."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dla_train.runs.metrics_file import read_rows
from tests.cluster.virtual_slurm import VirtualSlurm

STEPS = 80
SETTINGS = (f"training.steps={STEPS}", "training.validate_every=25", "checkpoint.every=10", "training.threads=1")
MIDDLE = 22  # steps, before something happens to a run: after its first checkpoint, written beside the steps after 10
ENDS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}
# A change of the script: preemption then sends SIGTERM, as it does on many clusters.
WITHOUT_WARNING = {r"#SBATCH --signal=.*\n": ""}


class Jobs:
    """Submits runs and looks after them.

    Args:
        slurm: that runs them. recipe: of the run. place: the working directory; run folders are made there.
    """

    def __init__(self, slurm: VirtualSlurm, recipe: Path, place: Path) -> None:
        self.slurm, self.recipe, self.place = slurm, recipe, place

    def submit(self, *options: str, folder: str = "run") -> str:
        """`dla-train submit` on the CPU; returns the job's id."""
        said = self.submit_as_told(*self.options(folder), *options)
        return re.search(r"submitted job (\d+)", said)[1]  # type: ignore[index]

    def submit_changed(self, changes: dict[str, str], *options: str) -> str:
        """The same with changes of the script: regular expressions, and what takes the place of each."""
        self.submit_as_told(*self.options(), *options, "--dry-run")
        script = self.place / "run/slurm/job.sh"
        text = script.read_text()
        for old, new in changes.items():
            text, count = re.subn(old, new, text)
            assert count == 1, f"{old} is {count} times in the script"
        script.write_text(text)
        output = f"--output={script.parent}/job-%j.log"
        return self.slurm.call("sbatch", "--parsable", output, str(script)).strip()

    def options(self, folder: str = "run") -> tuple[str, ...]:
        """What `submit` takes in every test."""
        return ("--recipe", str(self.recipe), "--gpus-per-node", "0", "--run-dir", folder, *SETTINGS)

    def submit_as_told(self, *options: str) -> str:
        """The same with nothing but `options`; returns what it said."""
        return self.slurm.call(sys.executable, "-m", "dla_train", "submit", *options, cwd=self.place)

    def start_time_eater(self) -> str:
        """A short job of the higher partition that needs all nodes, and so preempts what runs."""
        nodes = f"--nodes={len(self.slurm.nodes)}"
        options = ("--parsable", "--partition=high", nodes, "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        return self.slurm.call("sbatch", *options).strip()

    def show(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        return re.search(rf" {name}=(\S*)", self.slurm.call("scontrol", "-o", "show", "job", job))[1]  # type: ignore[index]

    def wait_for(self, job: str, *states: str) -> None:
        """Wait until the job is in one of `states`."""
        self.wait(lambda: self.show(job, "JobState") in states, job)

    def wait_for_end(self, job: str) -> str:
        """Wait until the job is out of the queue; returns its last state."""
        self.wait(lambda: self.show(job, "JobState") in ENDS, job)
        return self.show(job, "JobState")

    @contextmanager
    def standing_still(
        self, job: str, rank: int = 0, until: signal.Signals | None = None, folder: str = "run"
    ) -> Iterator[int]:
        """In the middle of its run the process of `rank` stands still for the block, and yields its id.

        So the run is not over before something has happened to it, however fast the machine. Other ranks wait in the
        next collective. Where a signal is named, the process goes on once it has been sent that.
        """
        self.wait(lambda: len(self.losses(folder)) >= MIDDLE, job, folder, every=0.02)
        process = self.process(folder, rank)
        os.kill(process, signal.SIGSTOP)
        seen = len(self.losses(folder))
        assert seen < STEPS - 1, f"too late: step {seen} of {STEPS}"  # another rank may be a step ahead of its row
        try:
            yield process
            if until is not None:
                self.go_on(job, process, until)
        finally:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def go_on(self, job: str, process: int, number: int) -> None:
        """Make a process that stands still go on, once it has been sent a signal."""
        self.wait(lambda: _has_got(process, number), job)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)

    def wait(
        self, is_so: Callable[[], object], job: str, folder: str = "run", seconds: float = 200, every: float = 0.2
    ) -> None:
        """Wait for anything; fails with the job's state and log."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                pytest.fail(f"{self.slurm.call('scontrol', '-o', 'show', 'job', job)}\n{self.log(job, folder)}")
            time.sleep(every)

    def losses(self, folder: str = "run") -> list[tuple[int, float]]:
        """Step and loss of every training step."""
        rows = read_rows(self.place / folder / "metrics.csv")
        return [(row["step"], row["loss"]) for row in rows if row["split"] == "train"]

    def log(self, job: str, folder: str = "run") -> str:
        """What script and processes have said so far."""
        path = self.place / folder / "slurm" / f"job-{job}.log"
        return path.read_text() if path.exists() else ""

    def process(self, folder: str = "run", rank: int = 0) -> int:
        """The process that trains in `folder` as `rank`; not one that it has started itself."""
        found = self.processes(folder, rank)
        assert len(found) == 1, f"rank {rank} in {folder}: {found}"
        return found[0]

    def stop_at_start(self, job: str, rank: int = 0) -> int:
        """Wait for the process of `rank` and make it stand still, long before it trains."""
        self.wait(lambda: self.processes(rank=rank), job)
        process = self.process(rank=rank)
        os.kill(process, signal.SIGSTOP)
        return process

    def processes(self, folder: str = "run", rank: int = 0) -> list[int]:
        """The same: none, or one."""
        wanted = os.fsencode(f"--run-dir={self.place / folder}")
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                variables = (entry / "environ").read_bytes().split(b"\0")
                status = (entry / "status").read_text()
            except OSError:  # it has ended
                continue
            is_training = words[0] == os.fsencode(sys.executable) and wanted in words
            if is_training and f"SLURM_PROCID={rank}".encode() in variables:
                parents[int(entry.name)] = int(re.search(r"PPid:\s*(\d+)", status)[1])  # type: ignore[index]
        return [process for process, parent in parents.items() if parent not in parents]

    def kill(self, job: str, rank: int = 0) -> int:
        """`kill -9` of one process in the middle of the run; returns the step of the newest checkpoint then."""
        with self.standing_still(job, rank) as process:
            os.kill(process, signal.SIGKILL)
            return self.newest_checkpoint()

    def newest_checkpoint(self) -> int:
        """Its step."""
        return max(int(path.name.removeprefix("step-")) for path in self.place.glob("run/checkpoints/step-*"))


def _has_got(process: int, number: int) -> bool:
    """Whether a stopped process has been sent a signal; or has gone, because Slurm also made it continue."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    return bool(int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)  # type: ignore[index]
