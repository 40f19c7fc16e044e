"""Runs a trained model on a text and writes the page and the pictures."""

from __future__ import annotations

from pathlib import Path

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer
from dla_train import atomic_files
from dla_train.errors import UsageError
from dla_train.evaluation.trained import Trained
from dla_train.inspection.files import LIFE, PAGE, RATES, WEIGHTS
from dla_train.inspection.observe import Layer, observe
from dla_train.inspection.page import page, pieces
from dla_train.inspection.pictures import draw_life, draw_rates, draw_weights
from dla_train.inspection.slot_life import lives_of


def write_inspection(folder: Path, trained: Trained, text: str, layer: int, head: int, max_tokens: int) -> Path:
    """Make `index.html` and three PNGs in `folder`, which may exist.

    Args:
        folder: where to write. trained: the model. text: what it reads. layer, head: which are shown first.
        max_tokens: how many tokens of the text are read, from its start.
    Returns:
        the page's path.
    Raises:
        UsageError: no tokenizer, too little text, no such layer or head, a model without slots, or a folder that
            cannot be written.
    """
    if trained.tokenizer_path is None:
        raise UsageError(
            f"{trained.folder} has no tokenizer.json: its data is no text, or the file is gone. Give another run."
        )
    try:
        encoding = load_tokenizer(trained.tokenizer_path).encode(text, add_special_tokens=False)  # as in training
    except DataError as error:
        raise UsageError(str(error)) from error
    if len(encoding.ids) < 2:
        raise UsageError("the text has fewer than two tokens; give a longer one.")
    words = pieces(text, encoding)[:max_tokens]
    layers = observe(trained.model, encoding.ids[:max_tokens])
    _check_choice("--layer", layer, len(layers))
    _check_choice("--head", head, layers[layer].plan.shift.shape[2])
    lives = [lives_of(one.plan) for one in layers]
    title = trained.title
    where = f"layer {layer}, head {head}"
    content = page(title, words, layers, lives, layer, head, _note(layers, len(encoding.ids), max_tokens))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(folder / PAGE, content)
        draw_life(folder / LIFE, lives[layer][head], f"slots of {where}")
        draw_rates(folder / RATES, layers)
        draw_weights(folder / WEIGHTS, layers[layer], f"slot weight by age, layer {layer}")
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}. Make room or permission there, or give --out another folder."
        ) from error
    return folder / PAGE


def _note(layers: list[Layer], tokens: int, max_tokens: int) -> str:
    parts = []
    if tokens > max_tokens:
        parts.append(f"The first {max_tokens:,} of {tokens:,} tokens (--max-tokens).")
    if layers[0].threshold is None:
        parts.append(
            "This memory does not look at the content: slots begin at fixed positions, and there are no scores."
        )
    return " ".join(parts)


def _check_choice(name: str, given: int, count: int) -> None:
    if not 0 <= given < count:
        raise UsageError(f"{name} is {given}; it must be from 0 to {count - 1}.")
