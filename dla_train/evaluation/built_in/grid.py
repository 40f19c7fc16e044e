"""Shares of correct answers by two sizes, as a picture of colored cells with the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_grid(
    figure: Figure,
    cells: Mapping[tuple[str, str], float],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    down: str,
    across: str,
) -> None:
    """Fill a figure.

    Args:
        cells: shares from 0 to 1 by (row, column); a missing cell stays empty.
        down, across: what the rows and columns are.
    """
    shares = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    axes = figure.add_subplot()
    picture = axes.imshow(100 * shares, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, xlabel=across, ylabel=down)
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            ink = "white" if share > 0.55 else "#222222"  # readable on dark and on light cells
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="answers right, %")
