"""The loss curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dla_train.comparison.compared import Compared
from dla_train.report.loss_picture import smoothed


def draw_comparison(path: Path, runs: Sequence[Compared]) -> None:
    """Write a PNG of the losses over the tokens that were trained on: training smoothed, validation with marks."""
    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state, unlike pyplot
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(runs) <= 10 else "tab20"]
    for index, run in enumerate(runs):
        color = colors(index % colors.N)
        end = f" ({run.validation[-1][1]:.3f})" if run.validation else ""
        axes.plot(*smoothed(run.training), color=color, linewidth=1.2, alpha=0.55)
        axes.plot(
            [tokens for tokens, _ in run.validation],
            [loss for _, loss in run.validation],
            color=color,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=f"{run.name}{end}",
        )
    units = " or ".join(dict.fromkeys(run.unit for run in runs))
    axes.set(
        title="validation (marks) and training (smoothed)", xlabel="training tokens", ylabel=f"loss, nats per {units}"
    )
    axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def _tokens(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
