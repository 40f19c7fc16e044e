"""What a run has been through, from the notes of its ranks: what took part in its weights, and what was done again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STARTING = ("start", "joining", "opening", "building")


@dataclass(frozen=True)
class Note:
    """A line of `recorded_fit.py`: seconds of the machine's clock, what began, the optimizer step, and more of it."""

    seconds: float
    what: str
    step: int
    detail: str


def read_notes(path: Path) -> list[Note]:
    """All whole lines of a rank; none where it never came to write one."""
    text = path.read_text() if path.exists() else ""
    fields = (line.split(" ", 3) for line in text[: text.rfind("\n") + 1].splitlines())
    return [Note(float(seconds), what, int(step), detail) for seconds, what, step, detail in fields]


def by_start(notes: Sequence[Note]) -> list[list[Note]]:
    """The notes of every start of the process."""
    starts: list[list[Note]] = []
    for note in notes:
        if note.what == "start":
            starts.append([])
        starts[-1].append(note)
    return starts


def consumed(notes: Sequence[Note]) -> list[tuple[int, str]]:
    """Step and hash of every micro-batch that went into the weights at the end, in the order of training.

    A start that goes on from step N discards what earlier ones have done after N. What it leaves out stays left out,
    and what it trains on twice stays there twice.
    """
    found: list[tuple[int, str]] = []
    for start in by_start(notes):
        trained = [(note.step, note.detail) for note in start if note.what == "step"]
        if trained:
            found = [(step, digest) for step, digest in found if step < trained[0][0]] + trained
    return found


def done_again(starts: Sequence[Sequence[Note]], number: int) -> int:
    """How many steps the first `number` starts had begun that the next start to train began once more.

    A run that was told to stop finishes its step: none.
    """
    before = next((steps for start in reversed(starts[:number]) if (steps := _steps(start))), [])
    after = next((steps for start in starts[number:] if (steps := _steps(start))), [])
    return max(0, before[-1] - after[0] + 1) if before and after else 0


def _steps(start: Sequence[Note]) -> list[int]:
    return [note.step for note in start if note.what == "step"]


def chain(batches: Sequence[tuple[int, str]]) -> str:
    """One hash over all of them, each in its place."""
    link = b""
    for step, digest in batches:
        link = hashlib.sha256(link + f"{step} {digest}".encode()).digest()
    return link.hex()


def first_difference(before: Sequence[object], after: Sequence[object]) -> str | None:
    """Where two histories part; None where they are the same."""
    for number, (one, other) in enumerate(zip(before, after, strict=False), start=1):
        if one != other:
            return f"entry {number} is {other} instead of {one}"
    return None if len(before) == len(after) else f"{len(after)} entries instead of {len(before)}"


def where(start: Sequence[Note]) -> str:
    """In words, what a rank was doing when its notes ended."""
    if not start:
        return "not started"
    last = start[-1]
    if last.what in STARTING:
        names = {"start": "importing", "joining": "joining", "opening": "opening the data", "building": "building"}
        return f"start-up ({names[last.what]})"
    return "report" if last.what == "reporting" else f"{last.what} {last.step}"
