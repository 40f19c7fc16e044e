"""The report of a run: `report.md`, `report.json`, `loss.png`."""

import json
from dataclasses import asdict

import torch

from dla_train import atomic_files
from dla_train.config.load import LoadedRecipe
from dla_train.errors import RunError
from dla_train.models import LanguageModel
from dla_train.report.facts import gather
from dla_train.report.finite import finite
from dla_train.report.loss_picture import draw_losses
from dla_train.report.sample import write_sample
from dla_train.report.text import parameter_count, render
from dla_train.report.yardstick import bigram_loss
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import TRAIN, VALIDATION, read_rows
from dla_train.training.start import Start


def write_report(loaded: LoadedRecipe, folder: RunFolder, start: Start, model: LanguageModel) -> str:
    """Write the report of a finished run, and return its text.

    Args:
        loaded: the recipe. folder: of the run. start: gives the data. model: trained, on the CPU.
    Raises:
        RunError: `metrics.csv` has no training step, because it was removed since.
    """
    recipe = loaded.recipe
    rows = read_rows(folder.metrics)
    if not any(row["split"] == TRAIN for row in rows):
        raise RunError(
            f"there is no report to write: {folder.metrics} has no step of this run, which is finished. Bring the file "
            "back, or train on with more training.steps. Without it, too, generate, eval and export take the model."
        )
    bigram = None
    if recipe.report.bigram and recipe.training.validates and (tokens := start.data.tokens_to_count()) is not None:
        bigram = bigram_loss(tokens, start.data.validation_windows, recipe.data.vocab_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = gather(rows, planned_steps=recipe.training.steps, parameters=parameters, bigram_loss=bigram)
    sample = None
    if recipe.report.prompt is not None:
        with torch.no_grad():
            sample = write_sample(model, folder.tokenizer, recipe.report, recipe.seed)
    unit = "answer" if start.data.has_answers else "token"
    text = render(loaded.name, facts, recipe.report.prompt, sample, str(folder), unit)
    draw_losses(
        folder.loss_picture,
        f"{loaded.name}: {parameter_count(parameters)} parameters"
        + (
            f", stopped at step {facts.steps:,} of {facts.planned_steps:,}" if facts.steps < facts.planned_steps else ""
        ),
        [(row["step"], row["loss"]) for row in rows if row["split"] == TRAIN],
        [(row["step"], row["loss"]) for row in rows if row["split"] == VALIDATION],
        bigram,
        unit,
    )
    data = {"recipe": loaded.name, **asdict(facts), "prompt": recipe.report.prompt, "sample": sample}
    as_json = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_files.write_text(folder.report_data, as_json + "\n")
    atomic_files.write_text(folder.report_text, text)  # last: its presence shows that the report is complete
    return text
