"""A table of all recipes: parameters and FLOPs per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dla_train.config.load import LoadedRecipe
from dla_train.estimate.flops import model_work
from dla_train.estimate.text import table
from dla_train.models import LanguageModel

_READS_PAST = ("reader", "plan", "softmax")


def overview(recipes: Sequence[LoadedRecipe]) -> str:
    """A Markdown table with a row for each recipe; FLOPs in millions, a multiply-add as two.

    Columns: parameters, window in tokens, FLOPs per token of the forward pass and of training (forward and backward),
    and how much of the training FLOPs reads the past (reader and plan, or softmax attention).
    """
    heads = ("recipe", "parameters", "window", "forward", "training", "of it reading the past")
    return table(heads, [_row(loaded) for loaded in recipes], frozenset(range(1, len(heads))))


def _row(loaded: LoadedRecipe) -> tuple[str, ...]:
    recipe = loaded.recipe
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    work = model_work(recipe.model, recipe.data.window)
    past = sum(work[part].training for part in _READS_PAST if part in work)
    flops = (sum(one.forward for one in work.values()), sum(one.training for one in work.values()), past)
    return (
        f"`{loaded.name}`",
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        f"{recipe.data.window:,}",
        *(_millions(one) for one in flops),
    )


def _millions(flops: float) -> str:
    return f"{flops / 1e6:,.0f}" if flops >= 1e7 else f"{flops / 1e6:.2f}"
