"""A run of two ranks that is hit at random moments, again and again, and compared with one that never was."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from dla_train.runs.metrics_file import TIMES
from tests.soak.history import Note, by_start, chain, consumed, done_again, first_difference, read_notes, where
from tests.soak.stand_in import write_stand_in

RANKS = 2
CHECKPOINT_EVERY = 4
RECIPE = """\
description: a small model that is hit again and again
model:
  vocab_size: ${data.vocab_size}
  hidden: 32
  layers: 2
  mixer:
    kind: mamba2
    heads: 2
    head_dim: 16
    state_dim: 8
    memory: {kind: dynamic, capacity: 4, threshold: 0.9}
data: {kind: text, path: CORPUS, vocab_size: 300, window: 48}
optimizer: {kind: adamw, lr: 1e-2}
schedule: {kind: cosine, warmup: 3}
training:
  steps: STEPS
  global_batch: 8
  micro_batch: 2
  accelerator: cpu
  threads: 1
  validate_every: 5
  validation_windows: 40
strategy: {kind: ddp, devices: RANKS}
checkpoint: {every: EVERY}
logging: {console_seconds: 0, tensorboard: false}
report: {prompt: null, bigram: false}
"""
_PATIENCE = 180.0  # seconds: more than any start, and more than rank 0 waits for another rank
_WHOM = ("rank 0", "rank 1", "all ranks")
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


class SoakFailure(Exception):
    """The run lost something, repeated something, or hung; says what."""


@dataclass(frozen=True)
class Hit:
    """A start of the run that was ended from outside.

    Attributes:
        wanted: the moment that was drawn. number, whom: which signal, and who got it. places: of each rank, what it was
            doing. code: exit code of rank 0. starts: of rank 0 until then, this one included. again: steps that it had
        begun and the next start began once more.
    """

    wanted: str
    number: signal.Signals
    whom: str
    places: tuple[str, ...]
    code: int
    starts: int
    again: int = 0


class DisturbedRun:
    """Makes both runs below `folder`.

    Args:
        folder: empty. kills: how many starts are hit. seed: of the moments.
    """

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self.folder, self.kills = folder, kills
        self.steps = 20 + 8 * kills
        self._draw = random.Random(seed)
        words = ["alpha", "beta", "gamma", "delta", "kappa", "omega", "state", "slot", "merge", "token"]
        choose = random.Random(0).choice
        corpus = folder / "words.txt"
        corpus.write_text("\n".join(" ".join(choose(words) for _ in range(9)) for _ in range(2000)))
        text = RECIPE.replace("CORPUS", str(corpus)).replace("STEPS", str(self.steps)).replace("RANKS", str(RANKS))
        text = text.replace("EVERY", str(CHECKPOINT_EVERY))
        (folder / "soak.yaml").write_text(text)
        write_stand_in(folder / "python")
        self._hits: list[Hit] = []

    def whole(self) -> float:
        """The run that nothing happens to; returns its seconds."""
        began = time.monotonic()
        process = self._start("undisturbed")
        self._wait(process, "undisturbed")
        if process.returncode:
            raise SoakFailure(f"the undisturbed run failed:\n{self._log('undisturbed')}")
        return time.monotonic() - began

    def hit(self) -> Hit:
        """Start or resume the run, strike at a random moment, and wait until all its processes have gone.

        Raises:
            SoakFailure: it hangs, came to its end, or failed by itself.
        """
        kind = self._draw.choice(("start-up", "step", "save", "validation"))
        count = self._draw.randint(1, {"start-up": 1, "step": 24, "save": 2, "validation": 12}[kind])
        delay = self._draw.uniform(0, self._starting_seconds() if kind == "start-up" else 0.03)
        number, whom = self._draw.choice(_SIGNALS), self._draw.choice(_WHOM)
        process = self._start("disturbed")
        deadline = time.monotonic() + _PATIENCE
        while kind != "start-up" and sum(note.what == kind for note in self._newest(0, process)) < count:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SoakFailure(f"it does not come to {kind} {count}:\n{self._log('disturbed')}")
            time.sleep(0.001)
        time.sleep(delay)
        ranks = [rank for rank in range(RANKS) if whom in (f"rank {rank}", "all ranks")]
        while not (pids := [pid for rank in ranks if (pid := self._pid(rank, process))]):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SoakFailure(f"{whom} is not there to be hit:\n{self._log('disturbed')}")
            time.sleep(0.001)  # it has not been started yet
        before = [self._newest(rank, process) for rank in range(RANKS)]
        for pid in pids:
            os.kill(pid, number)
        self._wait(process, "disturbed")
        if process.returncode == 0:
            raise SoakFailure(f"it came to its end after {len(self._hits)} hits:\n{self._log('disturbed')}")
        places = tuple(where(notes) for notes in before)
        moment = f"{kind} + {delay:.1f} s" if kind == "start-up" else f"{kind} no. {count} + {delay * 1000:.0f} ms"
        starts = len(by_start(self.notes("disturbed", 0)))
        self._hits.append(hit := Hit(moment, number, whom, places, process.returncode, starts))
        return hit

    def finish(self) -> list[Hit]:
        """Let the run come to its end; returns the hits, now with what had to be done again.

        Raises:
            SoakFailure: it does not.
        """
        process = self._start("disturbed")
        self._wait(process, "disturbed")
        if process.returncode:
            raise SoakFailure(f"left alone it failed:\n{self._log('disturbed')}")
        starts = by_start(self.notes("disturbed", 0))
        return [replace(hit, again=done_again(starts, hit.starts)) for hit in self._hits]

    def differences(self) -> list[str]:
        """Where tokens, losses or validations differ from the undisturbed run; empty if nowhere."""
        found = []
        for rank in range(RANKS):
            one, other = (consumed(self.notes(name, rank)) for name in ("undisturbed", "disturbed"))
            if difference := first_difference(one, other):
                found.append(f"tokens of rank {rank}: {difference}")
        rows = [self._rows(name) for name in ("undisturbed", "disturbed")]
        if difference := first_difference(*rows):
            found.append(f"metrics.csv: {difference}")
        if len([row for row in rows[0] if row["split"] == "train"]) != self.steps:
            found.append(f"metrics.csv of the undisturbed run does not have {self.steps} steps")
        return found

    def excesses(self, hits: list[Hit]) -> list[str]:
        """Where more had to be done again than what a checkpoint may be old; empty if nowhere.

        One is written while training goes on, at the longest until the next is due: two intervals.
        """
        found = []
        for number, hit in enumerate(hits, start=1):
            allowed = 0 if hit.code == 128 + hit.number else 2 * CHECKPOINT_EVERY
            if hit.again > allowed:
                found.append(f"hit {number}: {hit.again} steps had to be done again; {allowed} may be")
        return found

    def chains(self, name: str) -> list[str]:
        """The hash chain of the tokens of each rank."""
        return [chain(consumed(self.notes(name, rank))) for rank in range(RANKS)]

    def notes(self, name: str, rank: int) -> list[Note]:
        """All that a rank has noted in one of the runs."""
        return read_notes(self.folder / f"{name}-notes" / f"rank-{rank}.txt")

    def _rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name / "metrics.csv").open() as file:
            return [{key: text for key, text in row.items() if key not in TIMES} for row in csv.DictReader(file)]

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        notes = self.folder / f"{name}-notes"
        notes.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "SOAK_NOTES": str(notes),
            "SOAK_PYTHON": str(self.folder / "python"),
            "DLA_TRAIN_CACHE": str(self.folder / f"{name}-cache"),  # each prepares its text for itself
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, Path(__file__).with_name("recorded_fit.py"), "fit", "--recipe", "soak.yaml",
                 "--run-dir", name, "--resume", "auto"],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _newest(self, rank: int, process: subprocess.Popen[bytes]) -> list[Note]:
        """What `rank` has noted since `process`, which is rank 0, was started."""
        starts = by_start(self.notes("disturbed", rank))
        if rank == 0:
            return starts[-1] if starts and starts[-1][0].detail == str(process.pid) else []
        mine = self._newest(0, process)
        return starts[-1] if starts and mine and starts[-1][0].seconds > mine[0].seconds else []

    def _pid(self, rank: int, process: subprocess.Popen[bytes]) -> int | None:
        if rank == 0:
            return process.pid
        notes = self._newest(rank, process)
        return int(notes[0].detail) if notes and _lives(int(notes[0].detail)) else None

    def _starting_seconds(self) -> float:
        seconds = [
            next((note.seconds for note in start if note.what == "step"), start[0].seconds) - start[0].seconds
            for start in by_start(self.notes("undisturbed", 0))
        ]
        return max(seconds)

    def _wait(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Until no process of this start is left."""
        limit = _PATIENCE if name == "disturbed" and len(self._hits) < self.kills else 3600.0
        deadline = time.monotonic() + limit
        while process.poll() is None or _members(process.pid):
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                raise SoakFailure(f"it hangs after hit {len(self._hits) + 1}:\n{self._log(name)}")
            time.sleep(0.02)

    def _log(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-30:])


def _members(session: int) -> list[int]:
    """Processes of a session that still live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = re.sub(r"^.*\) ", "", entry.read_text(), flags=re.DOTALL).split()[:4]
        except OSError:  # it has ended
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
