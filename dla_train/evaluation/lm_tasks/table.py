"""Scores as Markdown, with the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from dla_train.evaluation.lm_tasks.harness import Score
from dla_train.evaluation.lm_tasks.published import AVERAGE, Published


def table(title: str, scores: Sequence[Score], paper: Published | None) -> str:
    """One group's table.

    Args:
        title: its name. scores: of all its tasks, in order.
        paper: if given, only its metric is shown, in percent, with the mean over the tasks.
    """
    if paper is None:
        rows = [
            [score.task, score.metric, f"{score.value:.4g}", _error(score, 1), f"{score.examples:,}"]
            for score in scores
        ]
        return f"### {title}\n\n" + _markdown(["task", "metric", "score", "±", "examples"], rows)
    shown = [score for score in scores if score.metric == paper.metric]
    columns = list(paper.columns.values())
    rows = [
        [score.task, f"{100 * score.value:.1f}", _error(score, 100), f"{score.examples:,}"]
        + [_figure(column, score.task) for column in columns]
        for score in shown
    ]
    if len(shown) > 1:
        mean = f"{100 * fmean(score.value for score in shown):.1f}"
        rows.append(["**mean**", mean, "", ""] + [_figure(column, AVERAGE) for column in columns])
    heads = ["task", "here, %", "±", "examples", *paper.columns]
    note = f"{paper.table}, {paper.metric} in percent"
    if paper.columns:
        note += f"; the columns behind the examples are the paper's, of {paper.size} after 50B tokens"
    return f"### {title}\n\n{note[0].upper()}{note[1:]}.\n\n" + _markdown(heads, rows)


def _error(score: Score, factor: int) -> str:
    return "" if score.error is None else f"{factor * score.error:.2g}"


def _figure(column: dict[str, float], task: str) -> str:
    return f"{column[task]:.1f}" if task in column else ""


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
