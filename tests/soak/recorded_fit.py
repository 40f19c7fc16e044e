"""`dla-train` with its ears open: every rank notes what it is doing and a hash of every window it trains on.

Run as `python recorded_fit.py fit ...`, with SOAK_NOTES naming the folder of the notes. Rank 0 starts the other ranks
itself, by `sys.executable -m dla_train ...`; SOAK_PYTHON names a stand-in for that interpreter which brings them here.

A note is one line, `SECONDS WHAT STEP DETAIL`, written at once: a kill takes nothing back.
"""

import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from dla_data.separate_windows import SeparateBatch

RANK = int(os.environ.get("DLA_TRAIN_RANKS", "0").split()[0])


@functools.cache
def _file() -> int:
    return os.open(f"{os.environ['SOAK_NOTES']}/rank-{RANK}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(what: str, step: int = 0, detail: object = "-") -> None:
    """Write a line."""
    os.write(_file(), f"{time.monotonic():.4f} {what} {step} {detail}\n".encode())


def noted(owner: Any, name: str, before: Callable[..., tuple[Any, ...]]) -> None:
    """Note what `before` says of the arguments, whenever `owner.name` is called."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        note(*before(*arguments))
        return original(*arguments, **options)

    setattr(owner, name, call)


def listen() -> None:
    """Put notes where a run's phases begin."""
    from dla_train.callbacks.checkpointing import Checkpointing
    from dla_train.training import fit
    from dla_train.training.module import LanguageModelTraining

    noted(fit, "joined", lambda *_: ("joining",))
    noted(fit, "prepare_start", lambda *_: ("opening",))
    noted(fit, "build_trainer", lambda *_: ("building",))
    noted(LanguageModelTraining, "training_step", _step)
    noted(LanguageModelTraining, "validation_step", lambda module, *_: ("validation", module.global_step))
    noted(Checkpointing, "save", lambda _, trainer: ("save", trainer.global_step))
    noted(fit, "_report", lambda *_: ("reporting",))


def _step(module: Any, batch: Any, batch_idx: int) -> tuple[str, int, str]:
    return "step", module.global_step + 1, ",".join(window_digests(batch))


def window_digests(batch: Any) -> list[str]:
    """A hash of the tokens of each window of a micro-batch and, where documents are kept apart, of their places."""
    if isinstance(batch, SeparateBatch):
        length = batch.tokens.shape[1] - 1
        starts = [[int(at) for at in batch.cu_seqlens if 0 <= at - begin < length]
                  for begin in range(0, len(batch.tokens) * length, length)]  # fmt: skip
        parts = [f"{[at % length for at in places]}".encode() for places in starts]
        return [_digest(row.numpy().tobytes() + places) for row, places in zip(batch.tokens, parts, strict=True)]
    return [_digest(row.numpy().tobytes()) for row in batch]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    note("start", 0, os.getpid())
    sys.executable = os.environ["SOAK_PYTHON"]
    from dla_train.cli.main import main

    listen()
    sys.exit(main(sys.argv[1:]))
