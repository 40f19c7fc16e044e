"""The loss curve as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]

_SMOOTHING_SHARE = 0.03  # share of the run that the bold line averages over, to smooth the noise of single batches


def draw_losses(
    path: Path, title: str, train: Points, validation: Points, bigram: float | None, unit: str = "token"
) -> None:
    """Write a PNG of the training loss (each step, and smoothed), the validation loss, and the bigram model's loss.

    Args:
        path: of the PNG. title: above the curve. train, validation: (step, nats per unit), by step. If the training
            loss of a step is not finite, the curve has a gap, and the smoothed curve leaves it out.
        bigram: in nats per token, or None.
        unit: what a loss is the mean over.
    """
    figure = Figure(figsize=(8, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state, unlike pyplot
    axes = figure.add_subplot()
    axes.plot(
        [step for step, _ in train],
        [loss for _, loss in train],
        color="#9db7d5",
        linewidth=0.8,
        label="training, each step",
    )
    axes.plot(*smoothed(train), color="#1f5a99", linewidth=1.8, label="training, smoothed")
    if validation:
        axes.plot(
            [step for step, _ in validation],
            [loss for _, loss in validation],
            color="#c8501e",
            marker="o",
            markersize=4,
            linewidth=1.4,
            label=f"validation ({validation[-1][1]:.3f} at the end)",
        )
    if bigram is not None:
        axes.axhline(bigram, color="#555555", linestyle="--", linewidth=1.2, label=f"bigram model ({bigram:.3f})")
    axes.set(title=title, xlabel="step", ylabel=f"loss, nats per {unit}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def smoothed(points: Points) -> tuple[list[int], list[float]]:
    """Steps with a finite loss, and the exponential moving average there, corrected for its bias at the start."""
    numbers = [(step, value) for step, value in points if math.isfinite(value)]
    keep = 1 - 1 / max(1.0, _SMOOTHING_SHARE * len(numbers))
    total = weight = 0.0
    smooth = []
    for _, value in numbers:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(total / weight)
    return [step for step, _ in numbers], smooth
