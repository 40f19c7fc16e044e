"""The report as text that is readable on a terminal and is Markdown in `report.md`."""

import shlex
import textwrap

from dla_train.report.facts import LAST, Facts


def render(name: str, facts: Facts, prompt: str | None, sample: str | None, folder: str, unit: str = "token") -> str:
    """Write the report.

    Args:
        name: of the recipe. facts: the numbers. prompt, sample: a text and its continuation; or None. folder: its path.
        unit: what a loss is the mean over.
    """
    parts = [f"# {name}"]
    if facts.steps < facts.planned_steps:
        parts.append(_unfinished(facts, folder))
    parts += [_table(_rows(facts, unit), ("quantity", "value"))]
    if facts.boundary_rate:
        layers = [
            (str(layer), f"{rate:.1%}", f"{facts.slots_in_use[layer]:.1f}")
            for layer, rate in sorted(facts.boundary_rate.items())
        ]
        parts.append(_table(layers, ("layer", "boundary rate", "slots in use")))
    if prompt is not None and sample is not None:
        parts.append(
            f"Sample; the model's part begins after the mark ▸\n\n{textwrap.indent(f'{prompt}▸{sample}', '    ')}"
        )
    parts.append(f"Run folder: {folder}\nLoss curve: {folder}/loss.png")
    return "\n\n".join(parts) + "\n"


def parameter_count(count: int) -> str:
    """A short form: `3.7 M`, `18 K`."""
    return f"{count / 1e6:.1f} M" if count >= 10**5 else f"{count / 1e3:.0f} K"


def duration(seconds: float) -> str:
    """A time as text: `4 min 05 s`, `2 h 03 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_rest:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _unfinished(facts: Facts, folder: str) -> str:
    return (
        f"This run is not finished: it stopped at step {facts.steps:,} of {facts.planned_steps:,}, so the figures are "
        "not what its recipe reaches.\n"
        f"Go on with: dla-train fit --run-dir {shlex.quote(folder)} --resume auto"
    )


def _rows(facts: Facts, unit: str) -> list[tuple[str, str]]:
    early = "" if facts.steps == facts.planned_steps else f" of {facts.planned_steps:,}"
    rows = [
        ("steps", f"{facts.steps:,}{early}"),
        *([("skipped steps", _skipped(facts))] if facts.skipped_steps else []),
        ("tokens", f"{facts.tokens:,}"),
        ("time", duration(facts.seconds)),
        ("speed", f"{facts.tokens_per_second:,.0f} tokens/s"),
        *(
            [("device memory", f"{facts.device_memory_gb:.2f} GB at most")]
            if facts.device_memory_gb is not None
            else []
        ),
        ("parameters", f"{facts.parameters:,}"),
    ]
    if facts.validation_loss is None:
        rows.append(("training loss", _training_loss(facts, unit)))
        return rows
    rows.append(("validation loss", f"{facts.validation_loss:.4f} nats per {unit}"))
    if facts.answer_accuracy is not None:
        rows.append(("answers right", f"{facts.answer_accuracy:.1%}"))
    else:
        rows.append(("validation perplexity", f"{facts.validation_perplexity:.2f}"))
    if facts.bigram_loss is not None:
        gap = facts.bigram_loss - facts.validation_loss
        verdict = f"the model is {abs(gap):.3f} {'better' if gap > 0 else 'worse'}"
        if facts.steps < facts.planned_steps:
            verdict += f", after {facts.steps / facts.planned_steps:.0%} of its steps"
        rows.append(("bigram loss", f"{facts.bigram_loss:.4f} ({verdict})"))
    return rows


def _skipped(facts: Facts) -> str:
    return f"{facts.skipped_steps:,}, which changed no weight: no finite gradient, or a spike"


def _training_loss(facts: Facts, unit: str) -> str:
    last = min(facts.steps, LAST)
    steps = "the only step" if last == 1 else f"the last {last} steps"
    if facts.training_loss is None:
        return f"no number in {steps}; no validation"
    left_out = last - facts.training_loss_steps
    without = f" without {left_out} whose loss is no number" if left_out else ""
    return f"{facts.training_loss:.4f} nats per {unit} (mean of {steps}{without}; no validation)"


def _table(rows: list[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    """A Markdown table whose columns are aligned in plain text."""
    lines = [heads, *rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(heads))]

    def line_of(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line_of(heads), rule, *(line_of(row) for row in rows)])
