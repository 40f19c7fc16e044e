"""What a run ran on: versions, commit, command, host. One entry per start, because a run may be resumed elsewhere."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dla_train import atomic_files

_COMPUTING = ("dla-train", "torch", "triton", "lightning", "deepspeed")
_PACKAGES = (*_COMPUTING, "torchmetrics", "datasets", "tokenizers", "omegaconf")


def record_start(path: Path, *, step: int, goes_on: bool, device: str, threads: int) -> None:
    """Add an entry for this process to `environment.json`.

    Args:
        path: the file.
        step: where this start begins. goes_on: whether it has that step from a checkpoint of this run folder.
        device: what it trains on. threads: of the CPU.
    """
    starts = _earlier(path)
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "first_step": step,
            "goes_on": goes_on,
            "command": shlex.join(sys.argv),
            "folder": os.getcwd(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": device,
            "threads": threads,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "commit": commit(),
        }
    )
    atomic_files.write_text(path, json.dumps({"starts": starts}, indent=2) + "\n")


def computing_packages() -> dict[str, str | None]:
    """Versions of the packages that compute a step and exchange tensors; None for one that is not installed."""
    return {name: _version(name) for name in _COMPUTING}


def last_start(path: Path) -> dict[str, Any] | None:
    """The last entry of `record_start` in the file `path`; None if there is none."""
    starts = _earlier(path)
    return starts[-1] if starts else None


def begun_at(path: Path) -> int:
    """The step at which the run whose starts `path` lists began: 0, or the step where it branched off. If it did so
    more than once, because it had no checkpoint of its own yet, the last time counts."""
    beginnings = [start["first_step"] for number, start in enumerate(_earlier(path)) if not _goes_on(start, number)]
    return beginnings[-1] if beginnings else 0


def has_gone_on(path: Path) -> bool:
    """Whether the last start that `path` lists went on from a checkpoint of the run itself, as far as is recorded."""
    last = last_start(path)
    return last is not None and last.get("goes_on", False)


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+changes` if tracked files differ from it; None for
    an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    return f"{head}+changes" if head and _git(root, "status", "--porcelain", "--untracked-files=no") else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _goes_on(start: dict[str, Any], number: int) -> bool:
    """Earlier versions did not record it: then all starts but the first count as going on."""
    return start.get("goes_on", number > 0)


def _earlier(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
