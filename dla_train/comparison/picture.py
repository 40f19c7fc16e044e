"""The loss curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dla_train.comparison.compared import Compared
from dla_train.report.loss_picture import smoothed

_SHORT = 50
"""Characters of a label that leave room for another one beside it."""
_LONG = 100
"""Characters of a name that a line has room for; of a longer one, its end is shown."""
_LINE = 0.22
"""Height of a line of the legend, in inches."""
_STYLES = "-", "--", ":"
"""For more runs than there are colors."""


def draw_comparison(path: Path, runs: Sequence[Compared]) -> None:
    """Write a PNG of the losses over the tokens that were trained on: training smoothed, validation with marks."""
    labels = [_label(run) for run in runs]
    abreast = 2 if max(map(len, labels)) <= _SHORT else 1
    # The legend is below the curves, however many there are and however long their names.
    figure = Figure(figsize=(9, 5.2 + _LINE * -(-len(runs) // abreast)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state, unlike pyplot
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(runs) <= 10 else "tab20"]
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        color = colors(index % colors.N)
        style = _STYLES[index // colors.N % len(_STYLES)]
        axes.plot(*smoothed(run.training), color=color, linestyle=style, linewidth=1.2, alpha=0.55)
        axes.plot(
            [tokens for tokens, _ in run.validation],
            [loss for _, loss in run.validation],
            color=color,
            linestyle=style,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    units = " or ".join(dict.fromkeys(run.unit for run in runs))
    axes.set(
        title="validation (marks) and training (smoothed)", xlabel="training tokens", ylabel=f"loss, nats per {units}"
    )
    axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower left", ncols=abreast)
    figure.savefig(path)


def _label(run: Compared) -> str:
    """For a legend, which takes what is between dollars for a formula, and leaves out what begins with `_`."""
    name = " ".join(run.name.split()).replace("$", r"\$")
    name = name if len(name) <= _LONG else f"...{name[3 - _LONG :]}"
    end = f" ({run.validation[-1][1]:.3f})" if run.validation else ""
    return f" {name}{end}" if name.startswith("_") else f"{name}{end}"


def _tokens(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
