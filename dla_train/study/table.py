"""The measurements as a Markdown table and as a picture."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Key = tuple[str, str, int]
_COLORS = ["#777777", "#c8501e", "#c79a1b", "#1f5a99", "#5b9bd5", "#9467bd", "#2a8c55"]


def group(results: Sequence[dict[str, Any]]) -> dict[Key, dict[str, list[dict[str, Any]]]]:
    """Results by (task, backbone, state) and then by variant, in the given order."""
    grouped: dict[Key, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        grouped[result["task"], result["backbone"], result["state"]][result["variant"]].append(result)
    return {key: dict(variants) for key, variants in grouped.items()}


def to_markdown(results: Sequence[dict[str, Any]]) -> str:
    """One table for each task, backbone and state size: mean over seeds, with the lowest and highest if there are
    several."""
    parts = []
    for (task, backbone, state), variants in group(results).items():
        sizes = sorted({int(size) for runs in variants.values() for run in runs for size in run["right"]})
        unit = "pairs" if task == "mqar" else "segments"
        heads = ["memory", "seeds", *(f"{size} {unit}" for size in sizes), "boundary rate by layer"]
        lines = [f"### {task}, {backbone}, state {state}", "", _row(heads), "|" + " --- |" * len(heads)]
        for variant, runs in variants.items():
            cells = [_share([run["right"][str(size)] for run in runs]) for size in sizes]
            lines.append(_row([variant, str(len(runs)), *cells, _rates(runs)]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write a PNG with a panel for each task, backbone and state: correct answers by size, with a line for each
    variant."""
    grouped = group(results)
    columns = min(4, len(grouped))
    rows = -(-len(grouped) // columns)
    figure = Figure(figsize=(3.6 * columns + 1.5, 3.1 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    known = list(dict.fromkeys(result["variant"] for result in results))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, ((task, backbone, state), variants) in zip(axes, grouped.items(), strict=False):
        for variant, runs in variants.items():
            sizes = sorted(int(size) for size in runs[0]["right"])
            means = [statistics.mean(run["right"][str(size)] for run in runs) for size in sizes]
            color = _COLORS[known.index(variant) % len(_COLORS)]
            axis.plot(range(len(sizes)), means, marker="o", markersize=4, color=color, label=variant)
            for run in runs if len(runs) > 1 else ():
                values = [run["right"][str(size)] for size in sizes]
                axis.plot(range(len(sizes)), values, ".", markersize=3, color=color, alpha=0.5)
            axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set(title=f"{task}, {backbone}, state {state}", ylim=(-0.02, 1.02))
        axis.set_xlabel("pairs" if task == "mqar" else "segments")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(grouped) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("answers right")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def _share(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1%}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.0%} to {max(values):.0%})"


def _rates(runs: list[dict[str, Any]]) -> str:
    layers = sorted({layer for run in runs for layer in run["boundary_rate"]}, key=int)
    return ", ".join(f"{statistics.mean(run['boundary_rate'][layer] for run in runs):.0%}" for layer in layers)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
