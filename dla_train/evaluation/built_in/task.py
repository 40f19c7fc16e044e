"""What a built-in task is given, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.errors import UsageError
from dla_train.evaluation.trained import Trained
from dla_train.models import AttentionConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of whom something is asked, and how much.

    Attributes:
        trained: its model already on the device that it is asked on.
        lengths: in tokens, ascending; None for what the task finds fitting.
        limit: examples of each kind, or None. text: a file in place of the validation text. seed: of the examples.
        say: told each step of the progress.
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
    def is_softmax(self) -> bool:
        """Whether it knows the positions of its training window only."""
        return isinstance(self.trained.recipe.model.mixer, AttentionConfig)

    def within_reach(self, lengths: Sequence[int], *, beyond: int = 0) -> tuple[int, ...]:
        """The lengths that were asked for, or `lengths` as far as the model reaches.

        Args:
            beyond: tokens that are written behind them.
        Raises:
            UsageError: a softmax model cannot read the longest that was asked for, or any of `lengths`.
        """
        if not self.is_softmax:
            return self.lengths or tuple(lengths)
        fitting = tuple(length for length in lengths if length + beyond <= self.window)
        chosen = self.lengths or fitting or tuple(lengths[:1])
        if max(chosen) + beyond > self.window:
            behind = f", and {beyond} more are for the answer" if beyond else ""
            raise UsageError(
                f"a length of {max(chosen):,} tokens is beyond this softmax model: it knows the positions of its "
                f"training window of {self.window:,} tokens only{behind}. Give shorter --lengths, or a linear model, "
                "which reads any length."
            )
        return chosen


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out.

    Attributes:
        name: of the task. note: one sentence or two on what the figures are. heads, rows: of a table.
        values: the same and more, for JSON. draw: makes the picture.
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
    """Asks one model. Whatever is wrong with the question is said when it is made, before anything is asked.

    Raises:
        UsageError: when made, if this model cannot be asked, or not this.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def run(self) -> Result:
        """Ask; the same weights, seed, limit and lengths give the same result."""
        raise NotImplementedError


def as_tokens(length: int) -> str:
    """A length for a heading: 4K for 4,096."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"
