"""Whether a run that is over has the report that its recipe asks for."""

from dla_train.config.catalog import RecipeFile
from dla_train.config.load import load
from dla_train.config.recipe import Recipe
from dla_train.runs.folder import RunFolder


def has_report_for(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the folder's report is what `recipe` asks for, the run being no further than when it was written.

    Asked before `recipe` takes the place of the one in the folder, which the report was written by.
    """
    if not folder.is_run() or not folder.report_text.is_file():
        return False
    text = folder.recipe.read_text(encoding="utf-8")
    saved = load(RecipeFile(folder.path.name, text, str(folder.recipe)), begun=True).recipe
    return saved.report == recipe.report and saved.training.steps == recipe.training.steps
