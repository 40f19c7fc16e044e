"""TensorBoard's event files: the numbers of `metrics.csv` once more, so a run goes on where they cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

from dla_train.runs.folder import RunFolder

if TYPE_CHECKING:  # slow to import, and there if it is needed
    from torch.utils.tensorboard.writer import SummaryWriter

_LOGGER = logging.getLogger(__name__)


class EventFiles(Logger):
    """A logger for Lightning. That something cannot be written is said once, and then it writes nothing more.

    Args:
        folder: of the run. step: the one that the run goes on from; TensorBoard drops what an earlier start wrote after
            it.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        super().__init__()
        self._folder = folder.tensorboard
        self._first_step = step + 1
        self._writer: SummaryWriter | None = None
        self._is_broken = False

    @property
    def name(self) -> str:
        """See `Logger`."""
        return self._folder.name

    @property
    def version(self) -> str:
        """See `Logger`."""
        return ""

    def write(self, work: Callable[[SummaryWriter], object]) -> None:
        """Do `work` with TensorBoard's writer, which reports in any later call what its thread could not write."""
        if self._is_broken:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard.writer import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=self._first_step)
            work(self._writer)
        except OSError as error:
            self._is_broken = True
            _LOGGER.warning(
                "TensorBoard's events cannot be written to %s (%s): the run goes on without them. metrics.csv has the "
                "same numbers.",
                self._folder,
                error.strerror or error,
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers of a step."""

        def add_all(writer: SummaryWriter) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        self.write(add_all)

    def log_hyperparams(self, params: Any, *arguments: Any, **named: Any) -> None:
        """Nothing: they are in `recipe.yaml`."""

    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self.write(lambda writer: writer.close())
