"""What a run reports: to the person watching (standard error), and with the time to `logs/run.log`.

Packages log as usual; this module decides what is shown: Lightning's warnings, but not its remarks (tips, device
tables).
"""

import logging
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

_QUIET = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")

# Warnings, mostly of Lightning, that do not apply here, each with the reason.
_BESIDE_THE_POINT = (
    r".*does not have many workers.*",  # reading windows from a memory map is much faster than training on them
    r".*GPU available but not used.*",  # the user asked for `training.accelerator: cpu`
    r".*Checkpoint directory .* exists and is not empty.*",
    r"Total length of .* across ranks is zero.*",  # `--resume auto` of a finished run only shows its report
    r".*smaller than the logging interval.*",  # logging is done by a callback at every step
    r".*`srun` command is available.*",  # a plain start on a login node is one process on purpose
    r".*treespec.*LeafSpec.*deprecated.*",  # Lightning's own use of torch
    r".*torch\.distributed\.\w+` is deprecated.*",  # DeepSpeed's own use of torch
)

_TALKATIVE = (
    "PIL", "asyncio", "compilers", "filelock", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "matplotlib",
    "numba", "tensorboard", "torch", "urllib3",
)  # fmt: skip


_SHOW_FAILED_THREAD = threading.excepthook


class _Console(logging.Handler):
    """Writes above a progress bar, if there is one, not into it. Leaves tracebacks to the log file."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            tqdm.write(prefix + record.getMessage(), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _LogFile(logging.FileHandler):
    """A log that is not worth a run: where it cannot be written, that is said once, without a traceback, and neither
    ends the run nor replaces the error with which it ends."""

    _is_said = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `logging` in the place of an error."""
        if not self._is_said:
            self._is_said = True  # first: the warning comes here, too
            _LOGGER.warning("%s cannot be written (%s): lines are missing there.", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Close the file; what could not be written by then is lost."""
        with suppress(OSError):
            super().close()


def start_console() -> None:
    """Show what our packages and warnings say on standard error."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [_Console(logging.INFO)]
    logging.getLogger("dla_train").setLevel(logging.DEBUG)  # for the file
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = _show_warning
    threading.excepthook = _show_failed_thread


def mute_console() -> None:
    """Say nothing on standard error from now on, because another process of the run reports there."""
    logging.getLogger().handlers = []


def quiet_lightning() -> None:
    """Silence Lightning's remarks; to be called after Lightning is imported, because the import turns them on."""
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers = []
        logger.propagate = True


def start_log(path: Path) -> logging.Handler:
    """Also append everything to `path`, with time and logger name; returns the handler, to be closed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


def _show_failed_thread(failed: threading.ExceptHookArgs) -> None:
    """Not the traceback of TensorBoard's thread, whose error `event_files` gets, too, and says in one sentence."""
    if not type(failed.thread).__module__.startswith("tensorboard."):
        _SHOW_FAILED_THREAD(failed)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    logging.getLogger("warnings").warning("%s (%s, %s:%d)", message, category.__name__, Path(filename).name, lineno)
