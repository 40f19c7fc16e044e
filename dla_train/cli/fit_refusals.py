"""What `dla-train fit` refuses before it imports torch and Lightning, which takes ten seconds.

All of it is checked again once the run folder is locked; this early check only spares the user the wait.
"""

from pathlib import Path

from dla_train.checkpoints.begun import require_no_checkpoint, require_same_recipe
from dla_train.checkpoints.resume import AUTO_FROM, require_checkpoint_at
from dla_train.checkpoints.store import CheckpointStore
from dla_train.config.extras import require_extras
from dla_train.config.load import LoadedRecipe
from dla_train.config.typed import plain
from dla_train.data.presence import require_text
from dla_train.errors import UsageError
from dla_train.evaluation.find import require_folder
from dla_train.runs.folder import RunFolder, require_own
from dla_train.runs.lock import require_free


def refuse_at_once(loaded: LoadedRecipe, folder: RunFolder, resume: str) -> None:
    """Refuse what can be refused from recipe, arguments and file names alone.

    With several processes, each would print the refusal without telling the others; they rely on the later check.

    Args:
        loaded: the recipe. folder: of the run. resume: as `--resume`.
    Raises:
        UsageError: the run folder belongs to something else; or a package, a checkpoint, the text, or the model for
            `initial_weights` is missing.
    """
    if loaded.recipe.strategy.kind != "single":
        return
    require_extras(loaded)
    require_own(folder)
    require_free(folder.lock, f"the run folder {folder}")
    if folder.is_run():
        require_same_recipe(folder, plain(loaded.recipe))
    is_begun = bool(CheckpointStore(folder.checkpoints).all())
    if resume == "never":
        require_no_checkpoint(folder, loaded.recipe.training.steps)
    elif resume != "auto" and not (resume.startswith(AUTO_FROM) and is_begun):
        path = Path(resume.removeprefix(AUTO_FROM))
        if path.resolve() != folder.path.resolve():
            require_checkpoint_at(path)
    if loaded.recipe.initial_weights is not None and not is_begun:
        try:
            require_folder(Path(loaded.recipe.initial_weights))
        except UsageError as error:
            raise loaded.problem("initial_weights", str(error)) from error
    require_text(loaded)
