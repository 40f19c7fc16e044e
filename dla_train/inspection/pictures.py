"""The page's pictures as PNGs, for slides and papers."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from dla_train.inspection.observe import Layer
from dla_train.inspection.slot_life import Spell


def corners(spell: Spell) -> list[tuple[float, float]]:
    """The outline of a spell: time to the right, tokens upwards. An open slot grows by one token at each step."""
    if spell.is_open:
        return [(spell.since, spell.first), (spell.until, spell.first), (spell.until, spell.end)]
    return [(spell.since, spell.first), (spell.until, spell.first), (spell.until, spell.end), (spell.since, spell.end)]


def draw_life(path: Path, life: list[Spell], title: str) -> None:
    """Write a PNG of the slots of one head over time, colored by density."""
    figure, axes = _figure((8, 5))
    shapes = PolyCollection([corners(spell) for spell in life], edgecolors="white", linewidths=0.4, cmap="YlGnBu")
    densities = torch.tensor([spell.density for spell in life])
    shapes.set_array(densities.numpy())
    # The middle 90 %: otherwise the first token, which always scores 0, would take up most of the scale.
    low, high = densities.quantile(torch.tensor([0.05, 0.95])).tolist()
    shapes.set_clim(low, high if high > low else low + 1)
    axes.add_collection(shapes)
    axes.autoscale()
    axes.set(title=title, xlabel="after token", ylabel="tokens held, by position")
    figure.colorbar(shapes, ax=axes, extend="both", label="density: mean score of the tokens in the slot")
    figure.savefig(path)


def draw_rates(path: Path, layers: list[Layer]) -> None:
    """Write a PNG of the share of tokens that open a slot, by layer and head."""
    figure, axes = _figure((6, 1.6 + 0.4 * len(layers)))
    heads = max(len(layer.rates) for layer in layers)
    rates = torch.full((len(layers), heads), torch.nan)  # drawn as nothing, where a layer has fewer heads
    for row, layer in enumerate(layers):
        rates[row, : len(layer.rates)] = layer.rates
    picture = axes.imshow(rates.numpy(), cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="head", ylabel="layer", xticks=range(heads))
    axes.set_yticks(range(len(layers)), [str(layer.index) for layer in layers])
    axes.set_title("boundary rate")
    figure.colorbar(picture, ax=axes)
    figure.savefig(path)


def draw_weights(path: Path, layer: Layer, title: str) -> None:
    """Write a PNG of the mean weight of slots by age, with a line for each head."""
    figure, axes = _figure((6, 4))
    for number, head in enumerate(layer.weights.tolist()):
        axes.plot(range(len(head)), head, marker="o", markersize=3, label=f"head {number}")
    axes.set(title=title, xlabel="age of the slot (0 is open)", ylabel="mean weight")
    if len(layer.weights) <= 8:
        axes.legend(frameon=False)
    figure.savefig(path)


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state, unlike pyplot
    return figure, figure.add_subplot()
