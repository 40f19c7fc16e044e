"""Whether a finished run has the report that its recipe asks for."""

from dla_train.config.recipe import Recipe
from dla_train.runs.folder import RunFolder
from dla_train.runs.saved_recipe import saved_recipe


def has_report_for(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the folder's report is the one that `recipe` asks for, assuming that no step was trained since.

    Must be called before `recipe` replaces the recipe in the folder, with which the report was written.
    """
    if not folder.is_run() or not folder.report_text.is_file():
        return False
    saved = saved_recipe(folder).recipe
    return saved.report == recipe.report and saved.training.steps == recipe.training.steps
