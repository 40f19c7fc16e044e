"""Packages that only some recipes need: whether they are installed, checked before anything slow or queued."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dla_train.config.load import LoadedRecipe


def require_extras(loaded: LoadedRecipe) -> None:
    """Check that the packages that the recipe needs are installed here; imports none of them.

    Raises:
        UsageError: one is not; says how to install it.
    """
    if loaded.recipe.training.fused == "liger" and find_spec("liger_kernel") is None:
        raise loaded.problem(
            "training.fused",
            "it is liger, but the package liger-kernel is not installed. Install it with pip install "
            "'dla-train[fused]', or set training.fused=none.",
        )
    if loaded.recipe.logging.wandb is None:
        return
    try:
        metadata.version("wandb")  # not find_spec: W&B leaves folders called wandb, which Python takes for packages
    except metadata.PackageNotFoundError as error:
        raise loaded.problem(
            "logging.wandb",
            "it is given, but the package wandb is not installed. Install it with pip install 'dla-train[wandb]', or "
            "set logging.wandb=null.",
        ) from error
