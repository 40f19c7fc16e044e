"""What a built-in task is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.errors import UsageError
from dla_train.evaluation.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a task is asked to do, and with which model.

    Attributes:
        trained: the run; its model must already be on the device that the task runs on.
        lengths: in tokens, ascending; None lets the task choose.
        limit: examples of each kind, or None. text: a file in place of the validation text. seed: of the examples.
        say: called with each message about progress.
    """

    trained: Trained
    lengths: tuple[int, ...] | None = None
    limit: int | None = None
    text: Path | None = None
    seed: int = 0
    say: Callable[[str], object] = print

    @property
    def window(self) -> int:
        """Tokens of the windows that the model was trained on."""
        return self.trained.recipe.data.window

    @property
    def is_limited(self) -> bool:
        """Whether the model has softmax attention that knows only the positions of its training window."""
        return not self.trained.recipe.model.reads_any_length(self.window)

    def within_reach(self, lengths: Sequence[int], *, beyond: int = 0) -> tuple[int, ...]:
        """The requested lengths; or if none were, those of `lengths` that the model can read.

        Args:
            beyond: number of tokens that are written after them.
        Raises:
            UsageError: the model cannot read the longest requested length, or none of `lengths`.
        """
        if not self.is_limited:
            return self.lengths or tuple(lengths)
        fitting = tuple(length for length in lengths if length + beyond <= self.window)
        chosen = self.lengths or fitting or tuple(lengths[:1])
        if max(chosen) + beyond > self.window:
            behind = f", and {beyond} more are for the answer" if beyond else ""
            raise UsageError(
                f"a length of {max(chosen):,} tokens is beyond this model: its softmax attention knows the positions "
                f"of its training window of {self.window:,} tokens only{behind}. Give shorter --lengths, or a linear "
                "model, which reads any length."
            )
        return chosen


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a task has found.

    Attributes:
        name: of the task. note: one or two sentences on what the numbers are. heads, rows: of a table.
        values: the same and more, for JSON. draw: draws the picture.
    """

    name: str
    note: str
    heads: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    draw: Callable[[Figure], None]

    def markdown(self) -> str:
        """Title, note and table."""
        lines = [self.heads, ["---"] + ["---:"] * (len(self.heads) - 1), *self.rows]
        return f"### {self.name}\n\n{self.note}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def picture(self, path: Path) -> None:
        """Write the picture as a PNG.

        Raises:
            OSError: it cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)  # no display and no global state, unlike pyplot
        self.draw(figure)
        figure.savefig(path)


class Task:
    """One task for one model. Any problem with the request is raised on construction, before anything is computed.

    Raises:
        UsageError: on construction, if this task cannot be run on this model, or not as requested.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def run(self) -> Result:
        """Run the task; the same weights, seed, limit and lengths give the same result."""
        raise NotImplementedError


def as_tokens(length: int) -> str:
    """A length as a heading: 4K for 4,096."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"
