"""Pages of what the memories do, written while training."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dla_data.tokenizer import load_tokenizer
from dla_train import atomic_files
from dla_train.callbacks.step_boundary import begins_step, ends_step
from dla_train.errors import RunError
from dla_train.inspection.observe import observe
from dla_train.inspection.page import page
from dla_train.inspection.slot_life import lives_of
from dla_train.models.context import windows_kept_whole
from dla_train.training.batch import FirstWindow, first_window
from dla_train.training.module import LanguageModelTraining

MOST_TOKENS = 512
"""How many tokens of the window a page shows, so that it stays small."""


class Inspecting(Callback):
    """After every `every` steps, shows what the memories do with the first window of the step.

    For one process, which holds the whole model. Changes nothing in training.

    Args:
        every: steps. folder: for the pages, `step-00000100.html`. tokenizer: a file that is there if tokens are text.
    """

    def __init__(self, every: int, folder: Path, tokenizer: Path) -> None:
        self.every = every
        self.folder = folder
        self.tokenizer = tokenizer
        self._window: FirstWindow | None = None  # of the current step, if it is to be shown

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the window, because at the end of the step the batch is another micro-batch."""
        if begins_step(trainer, batch_idx):
            is_shown = (trainer.global_step + 1) % self.every == 0
            self._window = first_window(batch, MOST_TOKENS) if is_shown else None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a page, if this is the end of such a step.

        Raises:
            RunError: it cannot be written.
        """
        if self._window is None or not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, LanguageModelTraining)
        tokens, ends = self._window
        with (
            trainer.precision_plugin.forward_context(),
            torch.compiler.set_stance("force_eager"),
            windows_kept_whole(pl_module.model),  # the other ranks do not take part
        ):
            layers = observe(pl_module.model, tokens, ends)
        path = self.folder / f"step-{trainer.global_step:08d}.html"
        lives = [lives_of(layer.plan, ends) for layer in layers]
        title = f"{self.folder.parent.name}, step {trainer.global_step}"
        apart = f" {len(ends)} documents are kept apart in it." if len(ends) > 1 else ""
        note = f"A window of the training data.{apart}"
        content = page(title, self._words(tokens), layers, lives, 0, 0, note)
        try:
            self.folder.mkdir(exist_ok=True)
            atomic_files.write_text(path, content)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}. Make room or permission there.") from error

    def _words(self, tokens: list[int]) -> list[str]:
        """What to show for each token: its part of the text, or its number and a space."""
        if not self.tokenizer.is_file():
            return [f"{token} " for token in tokens]
        tokenizer = load_tokenizer(self.tokenizer)
        # Token by token, as the text between them is not at hand; a part of a character shows as a replacement mark.
        return [tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
