"""The recipe that a run folder keeps."""

import os
from dataclasses import replace

from dla_train.config.catalog import find
from dla_train.config.load import LoadedRecipe, load
from dla_train.errors import UsageError
from dla_train.runs.environment import last_start
from dla_train.runs.folder import RunFolder


def saved_recipe(folder: RunFolder) -> LoadedRecipe:
    """The recipe of a run's latest start, named after the folder.

    Raises:
        UsageError: the file cannot be read, or is no longer a whole recipe; says how the run can go on.
    """
    try:
        return recipe_in(folder)
    except UsageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        last = last_start(folder.environment)
        raise UsageError(
            f"{error} This is the run's own recipe, which dla-train wrote whole: it was changed since, or another "
            f"version wrote it. Nothing else of the run is lost. Move {folder.recipe} away and give the recipe again: "
            f"dla-train fit --recipe NAME_OR_PATH [key=value ...] --run-dir {folder} --resume auto compares it with "
            f"that of the checkpoint and writes the file anew."
            + (f" The last start was: {last['command']}" if last is not None else "")
        ) from error


def recipe_in(folder: RunFolder) -> LoadedRecipe:
    """The recipe that lies in the folder of a run or of an exported model, named after the folder.

    Raises:
        UsageError: the file cannot be read, or is no whole recipe.
    """
    name = os.path.basename(os.path.abspath(folder.path))
    return load(replace(find(str(folder.recipe)), name=name), begun=True)
